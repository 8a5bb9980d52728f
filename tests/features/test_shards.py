"""An interrupted extraction continues from its last finished shard and ends in the same bytes."""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import paper_site
import pytest
import torch
from conftest import untrained_blip
from small_checkpoints import small_backbone
from small_extraction import COMPUTE, METADATA, caption_job, states_job, write_images
from torch.utils.data import BatchSampler

from stages.captioning.decoding import CaptionGenerator
from stages.core.stage import InputError
from stages.data.dataset import MappedDataset
from stages.features.extraction import ShardJob, compute_shards, extract_shards
from stages.features.loading import compute_ahead
from stages.features.shard_store import CHECKSUM
from stages.features.shards import RESUME_KEY, Shard, Shards
from stages.image_text.decoder_states import CatrStatesJob
from stages.image_text.pixels import train_dataset
from stages.image_text.retrieval_vectors import ViewVectorsJob
from stages.image_text.towers import Towers, load_towers
from stages.models import catr
from stages.models.vit import Backbone
from stages.segmentation.extract import SegmentationJob, val_views

COUNT = 11  # views, in three shards of 4, 4 and 3
KEYS = [(f"id{index:02d}", 0) for index in range(COUNT)]
SIZE = 4
BATCH = 2
VECTOR_METADATA = {"backbone": "tiny blip", "precision": "float32"}


class InterruptedRunError(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Images of two sizes, the smaller ones first."""
    return write_images(tmp_path_factory.mktemp("images"), [(24, 32)] * 8 + [(40, 33)] * (COUNT - 8))


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    return load_towers(folder, COMPUTE)


@pytest.fixture(scope="module")
def catr_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("catr") / "w.pth"
    path.write_bytes(paper_site.catr())
    return catr.load(path)


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "table", KEYS, {"weights": "w"}, SIZE, waiting=tmp_path / "waiting")


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("stages.image_text.pixels.BATCH", BATCH)
    monkeypatch.setattr("stages.image_text.decoder_states.CATR_BATCH", BATCH)
    monkeypatch.setattr("stages.captioning.caption_job.IMAGES", BATCH)


@dataclass
class Extraction:
    """A job whose model computes one batch in method `method` of class `owner`."""

    owner: type
    method: str
    job: ShardJob

    def fill(self, shards: Shards) -> list[Path]:
        return extract_shards(self.job, shards, COMPUTE, "extract")

    def count_batches(self, monkeypatch, fail_at=None) -> list[int]:
        """Return a list that will hold the size of every computed batch; batch number `fail_at` raises."""
        compute_batch = getattr(self.owner, self.method)
        sizes: list[int] = []

        def counting(model, inputs, *args):
            if len(sizes) == fail_at:
                raise InterruptedRunError
            sizes.append(len(inputs))
            return compute_batch(model, inputs, *args)

        monkeypatch.setattr(self.owner, self.method, counting)
        return sizes


@pytest.fixture(scope="module")
def captions(rows, towers, tmp_path_factory):
    return caption_job(towers, rows, tmp_path_factory.mktemp("states"))


@pytest.fixture
def jobs(rows, backbone, towers, catr_model, captions, small_batches):
    """Every extraction of the pipeline."""
    wide = replace(METADATA, dim=32)
    train_views = train_dataset(rows, towers.pixels.side, list(range(COUNT)), 0.5)
    segmentation = SegmentationJob(backbone, val_views(rows), METADATA, COMPUTE, batch_size=BATCH)
    return {
        "segmentation": Extraction(Backbone, "forward", segmentation),
        "blip": Extraction(Towers, "image_states", states_job(towers, rows)),
        "catr": Extraction(catr.Catr, "memory", CatrStatesJob(catr_model, rows, wide, COMPUTE)),
        "retrieval": Extraction(Towers, "image_states", ViewVectorsJob(towers, train_views, KEYS, VECTOR_METADATA)),
        "caption": Extraction(CaptionGenerator, "sample", captions),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["segmentation", "blip", "catr", "retrieval", "caption"])
def test_an_interrupted_extraction_loses_one_shard_and_ends_in_the_same_bytes(jobs, name, shards, tmp_path):
    """Interrupted within the third of three shards: only the views of that shard are computed again."""
    job = jobs[name]
    uninterrupted = replace(shards, target=tmp_path / "uninterrupted")
    job.fill(uninterrupted)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        sizes = job.count_batches(patch, fail_at=5)
        job.fill(shards)
    assert sum(sizes) == 2 * SIZE + BATCH
    assert shards.store.finished() == {"00000.parquet", "00001.parquet"}
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
    assert [path.name for path in shards.folder.iterdir()] == [RESUME_KEY]


# The resume key


def write_shard(shards, shard):
    with shards.store.write_shard(shard.name) as path:
        path.write_bytes(b"shard")


def write_two_shards(shards):
    """Write two of three shards and return the names of the missing ones."""
    for shard in shards.missing()[:2]:
        write_shard(shards, shard)
    return [shard.name for shard in shards.missing()]


def test_views_are_divided_in_order(shards):
    assert shards.missing() == [
        Shard("00000.parquet", range(0, 4)),
        Shard("00001.parquet", range(4, 8)),
        Shard("00002.parquet", range(8, 11)),
    ]
    assert write_two_shards(shards) == ["00002.parquet"]
    single = replace(shards, size=COUNT, target=shards.target.with_name("single"))
    assert single.missing() == [Shard("00000.parquet", range(COUNT))]


@pytest.mark.parametrize(
    "change", [{"metadata": {"weights": "other"}}, {"metadata": {}}, {"keys": [*KEYS, ("more", 0)]}, {"size": SIZE + 1}]
)
def test_shards_of_another_resume_key_are_deleted(shards, change):
    write_two_shards(shards)
    changed = replace(shards, **change)
    assert len(changed.missing()) == 3
    assert not changed.store.finished()
    assert len(shards.missing()) == 3  # the first key does not bring them back


def test_tables_do_not_share_shards(shards):
    write_two_shards(shards)
    assert len(replace(shards, target=shards.target.with_name("val"), metadata={}).missing()) == 3
    assert len(shards.missing()) == 1


def test_commit_replaces_the_target_by_the_shards(shards):
    shards.target.mkdir(parents=True)
    (shards.target / "00007.parquet").write_bytes(b"of a larger table")
    write_two_shards(shards)
    for shard in shards.missing():
        write_shard(shards, shard)
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


@pytest.mark.parametrize("content", [b"", b"null", b"\xff", b"12"])
def test_a_shard_with_a_wrong_checksum_is_extracted_again(shards, content):
    write_two_shards(shards)
    (shards.folder / f"00001.parquet{CHECKSUM}").write_bytes(content)
    assert [shard.name for shard in shards.missing()] == ["00001.parquet", "00002.parquet"]


def test_a_damaged_resume_key_starts_from_the_beginning(shards):
    write_two_shards(shards)
    (shards.folder / RESUME_KEY).write_bytes(b"\xff")
    assert len(shards.missing()) == 3


def test_a_shard_of_a_process_killed_before_its_checksum_is_extracted_again(shards):
    write_two_shards(shards)
    (shards.folder / "00002.parquet").write_bytes(b"shard")
    assert [shard.name for shard in shards.missing()] == ["00002.parquet"]


def test_shards_with_other_rows_than_expected_are_refused(jobs, shards):
    """Rows that are missing, doubled or in another order: shard 1 has those of shard 0."""
    jobs["segmentation"].fill(shards)
    (shards.folder / "00001.parquet").write_bytes((shards.folder / "00000.parquet").read_bytes())
    with pytest.raises(InputError) as error_info:
        shards.collect()
    assert "00001.parquet: not the rows that belong there; delete" in str(error_info.value)


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
    assert not shards.store.finished()


# Loading


@dataclass
class TimesTen(ShardJob):
    """Stands in for a job: writes no table, and remembers the batches of every shard."""

    loaded: dict[str, list] = field(default_factory=dict)
    dataset = MappedDataset(range(COUNT), lambda number: torch.tensor([10 * number]))
    model = None

    def prepare(self):
        pass

    def split_batches(self, rows):
        return BatchSampler(rows, 3, drop_last=False)

    def write(self, path, batches):
        name = path.name.split(".")[0]
        self.loaded[name] = [(indices, inputs.tolist()) for indices, inputs in batches]
        path.write_bytes(b"shard")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_missing_view_is_loaded_once_and_in_its_shard(shards, workers):
    write_two_shards(shards)
    shards.store.delete_shard("00000.parquet")
    job = TimesTen()
    counts = []
    assert [shard.name for shard in compute_shards(job, shards.missing(), shards.store, workers, counts.append)] == [
        "00000.parquet",
        "00002.parquet",
    ]
    assert job.loaded == {
        "00000": [([0, 1, 2], [[0], [10], [20]]), ([3], [[30]])],
        "00002": [([8, 9, 10], [[80], [90], [100]])],
    }
    assert counts == [3, 1, 3]
    assert shards.missing() == []


def test_the_progress_bar_starts_where_the_last_run_ended(jobs, shards, capsys):
    jobs["segmentation"].fill(shards)
    shards.store.delete_shard("00002.parquet")
    capsys.readouterr()
    jobs["segmentation"].fill(shards)
    output = capsys.readouterr().err
    assert "extract:  73%" in output  # 8 of 11
    assert f"{COUNT}/{COUNT}" in output


def test_batches_are_computed_one_ahead():
    """Batch 1 has started when batch 0 is stored, and every batch arrives with its own indices."""
    events = []

    def forward(inputs):
        events.append(f"start {inputs.item()}")
        return inputs * 10

    batches = [([number], torch.tensor(number)) for number in range(3)]
    for indices, outputs in compute_ahead(batches, forward):
        events.append(f"store {indices[0]} {outputs.item()}")
    assert events == ["start 0", "start 1", "store 0 0", "start 2", "store 1 10", "store 2 20"]
    assert list(compute_ahead([], forward)) == []


def test_an_engine_that_is_not_installed_is_one_line(jobs, shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # an import then fails
    monkeypatch.delitem(sys.modules, "stages.features.ray_engine", raising=False)
    with pytest.raises(InputError) as error_info:
        extract_shards(jobs["segmentation"].job, shards, COMPUTE.model_copy(update={"engine": "ray"}), "extract")
    assert str(error_info.value) == "compute.engine = 'ray': Ray is not installed; run `make setup-ray`"
