"""Long extractions: cut off, they go on from their last shard, byte for byte; in lower precision, and compiled."""

import importlib.util
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paper_site
import pytest
import torch
from conftest import untrained_blip
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Dataset

from stages.core.stage import InputError
from stages.data.manifest import Manifest, Row, write_manifest
from stages.features.loading import chunked, iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.image_text import views as image_views
from stages.image_text.decoder_states import encode_grids, encode_states
from stages.image_text.retrieval_vectors import encode_views
from stages.image_text.towers import Towers, load_towers
from stages.models import catr, vit
from stages.models.checkpoints.record import Checkpoint
from stages.models.compute import prepare_model
from stages.models.vit import Backbone
from stages.params.compute import Compute
from stages.segmentation.extract import extract, provenance, val_views

COUNT, SIZE, BATCH = 11, 4, 2  # three shards, of 4, 4 and 3
ALONE = Compute(precision="float32", compile=False, workers=0)
MADE_WITH = FeatureMetadata("tiny", "w", "t", dim=12, heads=3, patch="8x8", manifest="m")


class CutOffError(Exception):
    """A run that was killed."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Images of two sizes, the smaller ones first."""
    folder, rng, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for index in range(COUNT):
        height, width = (24, 32) if index < 8 else (40, 33)
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(Row(f"id{index:02d}", "val", str(path), height=height, width=width))
    return tuple(made)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(vit.build(vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 4))))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    return load_towers(Checkpoint("untrained", str(folder), "0"), ALONE)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    path = tmp_path_factory.mktemp("catr") / "w.pth"
    path.write_bytes(paper_site.catr())
    return catr.load(path)


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "table", COUNT, {"weights": "w"}, SIZE, waiting=tmp_path / "waiting")


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(image_views, "BATCH", BATCH)
    monkeypatch.setattr("stages.image_text.decoder_states.AT_ONCE", BATCH)


@pytest.fixture
def jobs(rows, backbone, towers, captioner, small_batches):
    """What fills shards, by name, with the method of a model that sees a batch of them."""
    blip, grids = replace(MADE_WITH, dim=32), replace(MADE_WITH, dim=32)
    return {
        "segmentation": (Backbone, "forward", partial(extract, backbone, val_views(rows), batch=BATCH), MADE_WITH),
        "blip": (Towers, "image_states", partial(encode_states, towers, rows), blip),
        "catr": (catr.Catr, "memory", partial(encode_grids, captioner, rows), grids),
        "retrieval": (
            Towers,
            "image_states",
            partial(encode_views, towers, rows, [0] * COUNT, list(range(COUNT))),
            None,
        ),
    }


def fill(job, shards):
    """Make what is missing; how many views the model saw. Shards that the caller keeps are delivered here."""
    run, made_with = job[2:]
    asked = [shards] if made_with is None else [shards, made_with]
    run(*asked, **({"compute": ALONE} if job[1] in ("forward", "memory") else {}))


def counted(job, monkeypatch, stop_at=None):
    """A list that gets the size of each batch that the model sees; the model fails at batch number `stop_at`."""
    owner, name = job[:2]
    once, seen = getattr(owner, name), []

    def noted(self, pixels):
        if len(seen) == stop_at:
            raise CutOffError
        seen.append(len(pixels))
        return once(self, pixels)

    monkeypatch.setattr(owner, name, noted)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["segmentation", "blip", "catr", "retrieval"])
def test_what_is_cut_off_loses_one_shard_and_ends_the_same(jobs, name, shards, tmp_path):
    """Killed in the middle of the third shard of three: its views are seen again, the others' are not."""
    job, undisturbed = jobs[name], replace(shards, target=tmp_path / "undisturbed")
    fill(job, undisturbed)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutOffError):
        seen = counted(job, patch, stop_at=5)
        fill(job, shards)
    assert sum(seen) == 2 * SIZE + BATCH
    assert [path.name for path in shards.files()] == ["00000.parquet", "00001.parquet"]
    assert not shards.target.exists()
    with pytest.MonkeyPatch.context() as patch:
        seen = counted(job, patch)
        fill(job, shards)
        assert sum(seen) == COUNT - 2 * SIZE
        fill(job, shards)
        assert sum(seen) == COUNT - 2 * SIZE  # all are there
    for one in (shards, undisturbed):
        one.commit()
    assert contents(shards.target) == contents(undisturbed.target)
    assert contents(shards.target).keys() == {f"0000{number}.parquet" for number in range(3)}


def test_half_a_shard_is_never_there(jobs, shards):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutOffError):
        counted(jobs["segmentation"], patch, stop_at=1)
        fill(jobs["segmentation"], shards)
    assert not shards.files()
    assert [path.suffix for path in shards.folder.iterdir()] == [".json"]  # what they are made with


# What waits fits what is made


def begun(shards):
    """The names of shards that are there after two of three were made."""
    for path, _ in shards.missing()[:2]:
        path.write_bytes(b"shard")
    return [path.name for path, _ in shards.missing()]


def test_a_tables_views_are_divided_in_order(shards):
    assert [(path.name, span) for path, span in shards.missing()] == [
        ("00000.parquet", range(0, 4)),
        ("00001.parquet", range(4, 8)),
        ("00002.parquet", range(8, 11)),
    ]
    assert begun(shards) == ["00002.parquet"]
    whole = replace(shards, size=COUNT, target=shards.target.with_name("other"))
    assert [span for _, span in whole.missing()] == [range(COUNT)]


@pytest.mark.parametrize(
    "change", [{"metadata": {"weights": "other"}}, {"metadata": {}}, {"count": COUNT + 1}, {"size": SIZE + 1}]
)
def test_what_was_made_with_anything_else_starts_anew(shards, change):
    begun(shards)
    other = replace(shards, **change)
    assert len(other.missing()) == 3
    assert not other.files()
    assert len(shards.missing()) == 3  # nor is there a way back


def test_what_was_made_by_other_code_starts_anew(shards, tmp_path, monkeypatch):
    """A module of this project that the process has loaded, and that is another one at the next run."""
    path = tmp_path / "module.py"
    path.write_text("answer = 1\n")
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("stages.made_up", path))
    monkeypatch.setitem(sys.modules, "stages.made_up", module)
    assert begun(shards) == ["00002.parquet"]
    assert len(shards.missing()) == 1
    path.write_text("answer = 2\n")
    assert len(shards.missing()) == 3


def test_tables_do_not_share_what_waits(shards):
    begun(shards)
    other = replace(shards, target=shards.target.with_name("val"), made_with={})
    assert len(other.missing()) == 3
    assert len(shards.missing()) == 1


def test_a_delivered_folder_has_shards_alone_in_place_of_what_was_there(shards):
    shards.target.mkdir(parents=True)
    (shards.target / "00007.parquet").write_bytes(b"of a larger table")
    begun(shards)
    for path, _ in shards.missing():
        path.write_bytes(b"shard")
    shards.commit()
    assert contents(shards.target) == {f"0000{number}.parquet": b"shard" for number in range(3)}
    assert not shards.folder.exists()
    assert len(shards.missing()) == 3  # the next table begins at its beginning


# Loading


class Numbers(Dataset):
    """View `i` is ten times `i`."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return index, torch.tensor([10 * index])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_view_comes_once_and_in_its_shard(shards, workers):
    begun(shards)
    shards.missing()
    (shards.folder / "00000.parquet").unlink()
    found = {
        path.name: [(indices, pixels.tolist()) for indices, pixels in arriving]
        for path, arriving in iterate_shards(shards, Numbers(), partial(chunked, size=3), workers, "test")
    }
    assert found == {
        "00000.parquet": [([0, 1, 2], [[0], [10], [20]]), ([3], [[30]])],
        "00002.parquet": [([8, 9, 10], [[80], [90], [100]])],
    }


def test_the_progress_bar_begins_where_the_last_run_ended(shards, capsys):
    begun(shards)
    for _, arriving in iterate_shards(shards, Numbers(), partial(chunked, size=3), 0, "test"):
        list(arriving)
    told = capsys.readouterr().err
    assert "test:  73%" in told and f"{COUNT}/{COUNT}" in told  # 8 of 11


def test_nothing_is_loaded_where_nothing_is_missing(shards):
    for path, _ in shards.missing():
        path.write_bytes(b"shard")
    assert not list(iterate_shards(shards, Numbers(), partial(chunked, size=3), 0, "test"))


# Precision and compiling


def table(path, backbone, rows, compute=ALONE, made_with=MADE_WITH):
    shards = Shards(path, len(rows), vars(made_with), waiting=path.parent / "waiting")
    extract(backbone, val_views(rows), shards, made_with, compute)
    shards.commit()
    return FeatureTable(path)


def tokens(features):
    return [row.tokens.float() for group in range(features.num_groups) for row in features.read_group(group)]


@pytest.mark.parametrize(("precision", "within"), [("bfloat16", 0.02), ("float16", 0.004)])
def test_lower_precision_gives_nearly_the_same_features(tmp_path, backbone, rows, precision, within):
    """Tokens behind the last norm are of size 1; halves of the exponent's kind keep three digits, bfloat16 two."""
    exact = tokens(table(tmp_path / "exact", backbone, rows))
    lower = tokens(table(tmp_path / "lower", backbone, rows, ALONE.model_copy(update={"precision": precision})))
    off = torch.cat([(one - other).flatten() for one, other in zip(exact, lower, strict=True)])
    assert 0 < off.abs().max() < within
    assert torch.cat([one.flatten() for one in exact]).std() > 0.5


def test_a_table_tells_its_precision(tmp_path, backbone, rows, monkeypatch):
    """So that features of one precision are never taken for those of another."""
    monkeypatch.chdir(tmp_path)
    write_manifest(Manifest(rows, "here", ("a", "b")))
    lower = ALONE.model_copy(update={"precision": "bfloat16"})
    experiment = SimpleNamespace(active=SimpleNamespace(backbone="tiny"), compute=lower)
    made_with = provenance(experiment, backbone, "native size")
    features = table(tmp_path / "lower", backbone, rows, lower, made_with)
    assert features.metadata.precision == "bfloat16"
    with pytest.raises(InputError, match="precision is 'bfloat16', expected 'float32'"):
        FeatureTable(tmp_path / "lower", precision="float32")
    begun_in_single = Shards(tmp_path / "t", COUNT, vars(replace(made_with, precision="float32")), SIZE, tmp_path / "w")
    begun(begun_in_single)
    assert len(replace(begun_in_single, made_with=vars(made_with)).missing()) == 3


def smallest():
    """A ViT that compiles fast."""
    settings = {"num_classes": 0, "embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_ratio": 1}
    return Backbone(VisionTransformer(img_size=16, patch_size=8, dynamic_img_size=True, **settings))


def images(count, height, width):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@torch.inference_mode()
def test_a_compiled_backbone_gives_the_same_features():
    backbone, pixels = smallest(), images(2, 24, 40)
    expected = backbone(pixels)
    compiled = prepare_model(backbone, Compute(precision="float32", compile=True, workers=0))
    found = compiled(pixels)
    torch.testing.assert_close(found.patches, expected.patches, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.class_token, expected.class_token, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_images_of_any_size_share_what_was_compiled(monkeypatch):
    """VOC's validation images have hundreds of sizes. Traced alone, which takes no compiler."""
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    backbone = smallest()
    compiled = prepare_model(smallest(), Compute(precision="float32", compile=True, workers=0))
    compiled.load_state_dict(backbone.state_dict())
    before = graphs["unique_graphs"]
    for size in ((2, 24, 40), (2, 33, 40), (3, 40, 47), (2, 41, 33), (2, 32, 32)):
        pixels = images(*size)
        torch.testing.assert_close(compiled(pixels).patches, backbone(pixels).patches)
    assert graphs["unique_graphs"] - before <= 2
