"""The plan of a run: what it prints, and that it does nothing of it."""

import re
import socket

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.data.manifest import LABELED, MANIFEST, Manifest, Row, write_manifest
from stages.params.experiment import load_experiment
from stages.plan import __main__ as plan
from stages.plan import work
from stages.plan.dataset_sizes import DatasetSize, dataset_sizes
from stages.plan.downloads import list_downloads
from stages.plan.placeholder_models import Models, build_models
from stages.plan.storage import list_stored


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params and checkpoints only, without a network."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/checkpoints").symlink_to(ROOT / "data/checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a plan of known sizes needs no network"))
    monkeypatch.setattr(work, "MIN_SECONDS", 0.001)
    return tmp_path


def test_sizes_and_times_have_readable_units():
    sizes = (None, 7, 86_700_000, 1_999_639_040, 3 * 10**15)
    assert [plan.format_bytes(size) for size in sizes] == ["?", "7 B", "86.7 MB", "2 GB", "3e+03 TB"]
    assert [plan.format_seconds(seconds) for seconds in (3.4, 600, 7200)] == ["3 s", "10 min", "2.0 h"]


def test_downloads_of_the_paper_profile_have_the_sizes_that_are_known(project, monkeypatch):
    monkeypatch.setattr("stages.plan.downloads.remote_size", lambda remote, mirrors: None)  # as without a network
    with_catr = plan.override_params("paper", ["paper.captions=captions.json"])  # of the second captioner
    downloads = {download.name: download for download in list_downloads(with_catr)}
    assert downloads["VOC 2012"].size == 1_999_639_040
    assert downloads["backbone vit_small_patch16_224.dino"].size == 4 * 21_665_664  # four bytes per parameter
    assert downloads["BLIP model_base_capfilt_large.pth"].size is None
    assert "CATR weight493084032.pth" in downloads
    assert not any(download.exists for download in downloads.values())
    (project / "data/downloads").mkdir()
    (project / "data/downloads/VOCtrainval_11-May-2012.tar").write_bytes(b"archive")
    blip_only = ["paper.captions=captions.json", "attention.captions.also=null"]
    with_blip = list_downloads(plan.override_params("paper", blip_only))
    assert [download.name for download in with_blip if download.exists] == ["VOC 2012"]
    assert re.search(r"still to download .* 1\.24 GB and 1 unknown", plan.download_table(with_blip).plain())


def test_local_data_are_not_downloaded_and_without_captions_no_blip(project):
    local = plan.override_params("paper", ["paper.voc_root=/data/voc", "paper.pets_root=/data/pets"])
    names = [download.name for download in list_downloads(local)]
    assert names == ["backbone vit_small_patch16_224.dino", "classifier vit_base_patch16_224.augreg_in1k"]


def test_images_in_a_folder_are_counted_in_its_manifest(project):
    experiment = plan.override_params("folder", ["folder.path=photos"])
    with pytest.raises(InputError, match="photos was not read yet; run `dvc repro data`, then plan"):
        dataset_sizes(experiment)
    sizes = {"train": [(10, 10)], "val": [(20, 30), (80, 60), (40, 40)]}
    rows = tuple(
        Row(f"{split}_{height}", split, "image.jpg", captions=("a bus",), height=height, width=width)
        for split, shapes in sizes.items()
        for height, width in shapes
    )
    for path in (MANIFEST, LABELED):
        write_manifest(Manifest(rows, "photos", ()), path)
    images, labeled = dataset_sizes(experiment)
    assert images == labeled == DatasetSize(train=1, val=3, image_size=(40, 40), captions=4)


def test_stored_features_have_the_size_of_their_shapes(project):
    shipped = build_models(load_experiment())
    models = Models(shipped.backbone, None, {"last4": shipped.compared["last4"]}, shipped.blip, side=80)
    images = DatasetSize(train=10, val=5, image_size=(80, 160), captions=30)
    outputs = list_stored(load_experiment(), images, DatasetSize(3, 3, (80, 80)), models)
    # Patches of 8x8 pixels, 128 numbers of two bytes per token, and one class token per image of BLIP
    assert {output.path: output.size for output in outputs} == {
        "data/features/segmentation/train": 10 * 4 * (10 * 10) * 128 * 2,
        "data/features/segmentation/val": 5 * (10 * 20) * 128 * 2,
        "data/features/backbones/last4/train": 10 * 4 * (10 * 10) * 4 * 128 * 2,
        "data/features/backbones/last4/val": 5 * (10 * 20) * 4 * 128 * 2,
        "data/features/captioning/val": 5 * (1 + 10 * 10) * 128 * 2,
        "data/features/retrieval": (10 * 4 + 5 + 30) * 128 * 2,
    }


def test_a_plan_prints_three_tables_and_writes_nothing(project, capsys):
    before = sorted(project.rglob("*"))
    plan.main("embedded", ["embedded.train=30", "embedded.val=20", "captioning.max_length=12"])
    text = capsys.readouterr().out
    assert "This plan downloads nothing and writes nothing; it measures a few calls of each model." in text
    assert "30 train, 20 val of about 80x80, 250 captions" in text
    assert "\nDownload\n" in text
    assert "\nStore\n" in text
    assert re.search(r"train_head@transformer-1 +15 epochs, train and val images +750 ", text)
    assert re.search(r"extract_backbone@last4 +train views of 80x80 +120 ", text)
    assert re.search(r"train_backbone@last4-linear-1 +15 epochs, train and val images +750 ", text)
    assert re.search(r"caption +captions, 29 per image +580 ", text)
    assert re.search(r"finetune@accumulated-1 +5 epochs, train and val images +2800 ", text)
    assert re.search(r"\ntotal +\d", text)
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(("images", "count"), [("all", 20), (7, 14), (1000, 20)])
def test_attention_maps_are_planned_for_the_sample_at_the_size_of_the_stage(project, monkeypatch, images, count):
    shapes = set()
    class_token_attention = work.class_token_attention

    def record(backbone, pixels, *options):
        shapes.update(tuple(image.shape) for image in pixels)
        return class_token_attention(backbone, pixels, *options)

    monkeypatch.setattr(work, "class_token_attention", record)
    experiment = plan.override_params("embedded", [f"attention.class_token.images={images}"])
    classifier = build_models(experiment).classifier
    planned = work.attention_work(experiment, DatasetSize(train=1, val=10, image_size=(240, 320)), classifier)
    assert (planned.stage, planned.count) == ("class_attention", count)  # by both ViTs
    assert shapes == {(3, 80, 104)}  # short side 80, whole patches of 8


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("papr", [], "profile = 'papr'"),
        ("paper", ["paper.nothing=1"], "paper.nothing"),
        ("paper", ["nowhere.at.all=1"], "has no key 'nowhere.at.all'"),
        ("paper", ["paper.captions={"], "paper.captions = '{': not valid YAML"),
        ("paper", ["paper.voc_archive=ftp://x"], "paper.voc_archive = 'ftp://x'"),
    ],
)
def test_wrong_params_are_named(project, profile, overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        plan.override_params(profile, overrides)
