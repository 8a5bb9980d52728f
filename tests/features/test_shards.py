"""An interrupted extraction continues from its last finished shard and ends in the same bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import paper_site
import pytest
import torch
from conftest import untrained_blip
from PIL import Image
from torch.utils.data import BatchSampler

from stages.core.stage import InputError
from stages.data.dataset import MappedDataset
from stages.data.manifest import Row
from stages.features.loading import iterate_shards
from stages.features.shards import CHECKSUMS, RESUME_KEY, Shards
from stages.features.tokens import FeatureMetadata
from stages.image_text.decoder_states import encode_grids, encode_states
from stages.image_text.pixels import train_dataset
from stages.image_text.retrieval_vectors import encode_views
from stages.image_text.towers import Towers, load_towers
from stages.models import catr, vit
from stages.models.checkpoints.record import Checkpoint
from stages.models.vit import Backbone
from stages.params.compute import Compute
from stages.segmentation.extract import extract, val_views

COUNT = 11  # views, in three shards of 4, 4 and 3
SIZE = 4
BATCH = 2
COMPUTE = Compute(precision="float32", compile=False, workers=0, live=False)
VECTOR_METADATA = {"backbone": "tiny blip", "precision": "float32"}
METADATA = FeatureMetadata("tiny", "w", "t", dim=12, heads=3, patch="8x8", manifest="m")


class InterruptedRunError(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Images of two sizes, the smaller ones first."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(COUNT):
        height, width = (24, 32) if index < 8 else (40, 33)
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        rows.append(Row(f"id{index:02d}", "val", str(path), height=height, width=width))
    return tuple(rows)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(vit.build(vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 4))))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    return load_towers(Checkpoint("untrained", str(folder), "0"), COMPUTE)


@pytest.fixture(scope="module")
def catr_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("catr") / "w.pth"
    path.write_bytes(paper_site.catr())
    return catr.load(path)


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "table", COUNT, {"weights": "w"}, SIZE, waiting=tmp_path / "waiting")


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("stages.image_text.pixels.BATCH", BATCH)
    monkeypatch.setattr("stages.image_text.decoder_states.CATR_BATCH", BATCH)


@dataclass
class Job:
    """Fills shards by a model whose method `method` of class `owner` computes one batch."""

    owner: type
    method: str
    fill: Callable[[Shards], object]

    def count_batches(self, monkeypatch, fail_at=None) -> list[int]:
        """Return a list that will hold the size of every computed batch; batch number `fail_at` raises."""
        compute_batch = getattr(self.owner, self.method)
        sizes: list[int] = []

        def counting(model, pixels):
            if len(sizes) == fail_at:
                raise InterruptedRunError
            sizes.append(len(pixels))
            return compute_batch(model, pixels)

        monkeypatch.setattr(self.owner, self.method, counting)
        return sizes


@pytest.fixture
def jobs(rows, backbone, towers, catr_model, small_batches):
    """Every extraction of the pipeline."""
    wide = replace(METADATA, dim=32)
    train_views = train_dataset(rows, towers.pixels.side, list(range(COUNT)), 0.5)
    ids = [row.image_id for row in rows]
    return {
        "segmentation": Job(
            Backbone,
            "forward",
            lambda shards: extract(backbone, val_views(rows), shards, METADATA, COMPUTE, batch_size=BATCH),
        ),
        "blip": Job(Towers, "image_states", lambda shards: encode_states(towers, rows, shards, wide)),
        "catr": Job(catr.Catr, "memory", lambda shards: encode_grids(catr_model, rows, shards, wide, COMPUTE)),
        "retrieval": Job(
            Towers,
            "image_states",
            lambda shards: encode_views(towers, train_views, ids, [0] * COUNT, shards, VECTOR_METADATA),
        ),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["segmentation", "blip", "catr", "retrieval"])
def test_an_interrupted_extraction_loses_one_shard_and_ends_in_the_same_bytes(jobs, name, shards, tmp_path):
    """Interrupted within the third of three shards: only the views of that shard are computed again."""
    job = jobs[name]
    uninterrupted = replace(shards, target=tmp_path / "uninterrupted")
    job.fill(uninterrupted)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        sizes = job.count_batches(patch, fail_at=5)
        job.fill(shards)
    assert sum(sizes) == 2 * SIZE + BATCH
    assert [path.name for path in shards.files()] == ["00000.parquet", "00001.parquet"]
    assert not shards.target.exists()
    with pytest.MonkeyPatch.context() as patch:
        sizes = job.count_batches(patch)
        job.fill(shards)
        assert sum(sizes) == COUNT - 2 * SIZE
        job.fill(shards)
        assert sum(sizes) == COUNT - 2 * SIZE  # all shards exist
    shards.commit()
    uninterrupted.commit()
    assert contents(shards.target) == contents(uninterrupted.target)
    assert contents(shards.target).keys() == {f"0000{number}.parquet" for number in range(3)}


def test_an_unfinished_shard_is_not_written(jobs, shards):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        jobs["segmentation"].count_batches(patch, fail_at=1)
        jobs["segmentation"].fill(shards)
    assert not shards.files()
    assert [path.name for path in shards.folder.iterdir()] == [RESUME_KEY]


# The resume key


def write_shard(shards, path):
    path.write_bytes(b"shard")
    shards.finish(path)


def write_two_shards(shards):
    """Write two of three shards and return the file names of the missing ones."""
    for path, _ in shards.missing()[:2]:
        write_shard(shards, path)
    return [path.name for path, _ in shards.missing()]


def test_views_are_divided_in_order(shards):
    assert [(path.name, span) for path, span in shards.missing()] == [
        ("00000.parquet", range(0, 4)),
        ("00001.parquet", range(4, 8)),
        ("00002.parquet", range(8, 11)),
    ]
    assert write_two_shards(shards) == ["00002.parquet"]
    single = replace(shards, size=COUNT, target=shards.target.with_name("single"))
    assert [span for _, span in single.missing()] == [range(COUNT)]


@pytest.mark.parametrize(
    "change", [{"metadata": {"weights": "other"}}, {"metadata": {}}, {"count": COUNT + 1}, {"size": SIZE + 1}]
)
def test_shards_of_another_resume_key_are_deleted(shards, change):
    write_two_shards(shards)
    changed = replace(shards, **change)
    assert len(changed.missing()) == 3
    assert not changed.files()
    assert len(shards.missing()) == 3  # the first key does not bring them back


def test_tables_do_not_share_shards(shards):
    write_two_shards(shards)
    assert len(replace(shards, target=shards.target.with_name("val"), metadata={}).missing()) == 3
    assert len(shards.missing()) == 1


def test_commit_replaces_the_target_by_the_shards(shards):
    shards.target.mkdir(parents=True)
    (shards.target / "00007.parquet").write_bytes(b"of a larger table")
    write_two_shards(shards)
    for path, _ in shards.missing():
        write_shard(shards, path)
    shards.commit()
    assert contents(shards.target) == {f"0000{number}.parquet": b"shard" for number in range(3)}
    assert not shards.folder.exists()
    assert len(shards.missing()) == 3  # the next extraction starts from the beginning


# Damage


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped byte": flip_byte,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["segmentation", "retrieval"])
def test_a_damaged_shard_is_extracted_again(jobs, name, damage, shards, tmp_path, capsys):
    uninterrupted = replace(shards, target=tmp_path / "uninterrupted")
    jobs[name].fill(uninterrupted)
    jobs[name].fill(shards)
    damage(shards.folder / "00001.parquet")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        sizes = jobs[name].count_batches(patch)
        jobs[name].fill(shards)
        assert sum(sizes) == SIZE
    assert capsys.readouterr().out == f"{shards.folder}: damaged shards, extracted again: 00001.parquet\n"
    shards.commit()
    uninterrupted.commit()
    assert contents(shards.target) == contents(uninterrupted.target)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b'{"00000.parquet": "x"}'])
def test_without_valid_checksums_all_shards_are_extracted_again(shards, content):
    write_two_shards(shards)
    (shards.folder / CHECKSUMS).write_bytes(content)
    assert len(shards.missing()) == 3


def test_a_damaged_resume_key_starts_from_the_beginning(shards):
    write_two_shards(shards)
    (shards.folder / RESUME_KEY).write_bytes(b"\xff")
    assert len(shards.missing()) == 3


def test_a_shard_of_a_process_killed_before_its_checksum_is_extracted_again(shards):
    write_two_shards(shards)
    path, _ = shards.missing()[0]
    path.write_bytes(b"shard")
    assert [path.name for path, _ in shards.missing()] == ["00002.parquet"]


# Models that give values which cannot be stored

MODELS = {"segmentation": "tiny", "blip": "tiny", "catr": "tiny", "retrieval": "tiny blip"}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
@pytest.mark.parametrize("name", MODELS)
def test_values_that_are_not_finite_in_half_precision_are_refused(jobs, name, value, shards, monkeypatch):
    """The second batch has one such value. Nothing of its shard is left."""
    job = jobs[name]
    compute_batch = getattr(job.owner, job.method)
    calls = []

    @torch.inference_mode()
    def damaged(model, pixels):
        output = compute_batch(model, pixels)
        values = output.patches if name == "segmentation" else output
        calls.append(len(pixels))
        if len(calls) == 2:
            values[(0,) * values.ndim] = value
        return output

    monkeypatch.setattr(job.owner, job.method, damaged)
    with pytest.raises(InputError) as error_info:
        job.fill(shards)
    message = str(error_info.value)
    assert f"model '{MODELS[name]}'" in message
    assert "image 'id02'" in message
    assert "NaN, infinite or too large for float16 (at most 65504); check its weights" in message
    assert not shards.files()


# Loading

split_batches = partial(BatchSampler, batch_size=3, drop_last=False)


def times_ten(number):
    return torch.tensor([10 * number])


@pytest.fixture
def dataset():
    return MappedDataset(range(COUNT), times_ten)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_missing_view_is_loaded_once_and_in_its_shard(shards, dataset, workers):
    write_two_shards(shards)
    (shards.folder / "00000.parquet").unlink()
    loaded = {}
    for path, batches in iterate_shards(shards, dataset, split_batches, workers, "test"):
        loaded[path.name] = [(indices, pixels.tolist()) for indices, pixels in batches]
        path.write_bytes(b"shard")
    assert loaded == {
        "00000.parquet": [([0, 1, 2], [[0], [10], [20]]), ([3], [[30]])],
        "00002.parquet": [([8, 9, 10], [[80], [90], [100]])],
    }


def test_the_progress_bar_starts_where_the_last_run_ended(shards, dataset, capsys):
    write_two_shards(shards)
    for path, batches in iterate_shards(shards, dataset, split_batches, 0, "test"):
        list(batches)
        path.write_bytes(b"shard")
    output = capsys.readouterr().err
    assert "test:  73%" in output  # 8 of 11
    assert f"{COUNT}/{COUNT}" in output


def test_nothing_is_loaded_if_nothing_is_missing(shards, dataset):
    for path, _ in shards.missing():
        write_shard(shards, path)
    assert not list(iterate_shards(shards, dataset, split_batches, 0, "test"))
