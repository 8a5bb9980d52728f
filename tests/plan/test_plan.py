"""The plan of a run: what it says, and that it does nothing of it."""

import re
import socket

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.params.experiment import load_experiment
from stages.plan import __main__ as plan
from stages.plan import work
from stages.plan.downloads import downloads_of, weights_bytes
from stages.plan.placeholder_models import Models
from stages.plan.sizes import Images
from stages.plan.storage import stored_by


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with params alone, and no way out of this machine."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/checkpoints").symlink_to(ROOT / "data/checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a plan of known sizes asks nobody"))
    monkeypatch.setattr(work, "LEAST", 0.001)
    return tmp_path


def test_sizes_and_times_are_written_as_people_say_them():
    assert [plan.in_bytes(size) for size in (None, 7, 1_999_639_040, 86_700_000)] == ["?", "7 B", "2 GB", "86.7 MB"]
    assert [plan.in_time(seconds) for seconds in (3.4, 600, 7200)] == ["3 s", "10 min", "2.0 h"]


def test_a_timm_models_weights_take_four_bytes_a_parameter():
    assert weights_bytes("vit_small_patch16_224.dino") == 4 * 21_665_664


def test_the_paper_profiles_downloads_are_told_with_what_is_known(elsewhere, monkeypatch):
    monkeypatch.setattr("stages.plan.downloads.remote_size", lambda remote, mirrors: None)  # as without a network
    found = {
        one.what: one
        for one in downloads_of(plan.asked("paper", ["captioning.model=catr", "paper.captions=captions.json"]))
    }
    assert found["VOC 2012"].size == 1_999_639_040
    assert found["backbone vit_small_patch16_224.dino"].size == 4 * 21_665_664
    assert found["BLIP model_base_capfilt_large.pth"].size is None
    assert "CATR weight493084032.pth" in found
    assert not any(one.there for one in found.values())
    (elsewhere / "data/downloads").mkdir()
    (elsewhere / "data/downloads/VOCtrainval_11-May-2012.tar").write_bytes(b"there")
    again = downloads_of(plan.asked("paper", ["paper.captions=captions.json"]))
    assert [one.what for one in again if one.there] == ["VOC 2012"]
    assert re.search(r"still to download .* 1\.24 GB and 1 unknown", plan.download_table(again).plain())


def test_data_in_place_are_not_downloaded(elsewhere):
    changes = ["paper.voc_root=/data/voc", "paper.pets_root=/data/objects"]  # and without captions, no BLIP
    found = [one.what for one in downloads_of(plan.asked("paper", changes))]
    assert found == ["backbone vit_small_patch16_224.dino", "classifier vit_base_patch16_224.augreg_in1k"]


def test_what_is_stored_is_counted_by_hand(elsewhere):
    experiment = load_experiment()
    images = Images(train=10, val=5, sides=(80, 160), captions=30)
    shipped = plan.models_of(experiment)
    models = Models(shipped.backbone, None, shipped.blip, shipped.decoder, 80)
    found = {one.path: one.size for one in stored_by(experiment, images, Images(3, 3, (80, 80), 0), models)}
    assert found["data/features/segmentation/train"] == 10 * 4 * (10 * 10) * 128 * 2
    assert found["data/features/segmentation/val"] == 5 * (10 * 20) * 128 * 2
    assert found["data/features/captioning/val"] == 5 * 101 * 128 * 2
    assert found["data/features/retrieval"] == (10 * 4 + 5 + 30) * 128 * 2


def test_a_plan_prints_three_tables_and_writes_nothing(elsewhere, capsys):
    before = sorted(elsewhere.rglob("*"))
    plan.main("embedded", ["embedded.train=30", "embedded.val=20", "captioning.max_length=12"])
    told = capsys.readouterr().out
    assert "Nothing is downloaded, computed or written by this plan." in told
    assert "30 train, 20 val, 250 captions" in told
    assert re.search(r"train_head@transformer +15 epochs, train and val images +750 ", told)
    assert re.search(r"caption +captions, 11 cells an image +220 ", told)
    assert re.search(r"all of them, and once more in DVC's cache", told)
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize(
    ("profile", "changes", "told"),
    [
        ("papr", [], "profile = 'papr'"),
        ("paper", ["paper.nothing=1"], "paper.nothing = 1: unknown key"),
        ("paper", ["nowhere.at.all=1"], "has no key 'nowhere.at.all'"),
        ("paper", ["paper.voc_archive=ftp://x"], "paper.voc_archive = 'ftp://x'"),
    ],
)
def test_wrong_params_are_named(elsewhere, profile, changes, told):
    with pytest.raises(InputError, match=re.escape(told)):
        plan.asked(profile, changes)
