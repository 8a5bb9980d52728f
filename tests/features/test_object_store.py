"""Shards that wait in an object store: moto's S3, served on 127.0.0.1. Skipped without moto (`make setup-ray`)."""

from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs
from small_checkpoints import small_backbone
from small_extraction import COMPUTE, METADATA, write_images

from stages.core.stage import InputError
from stages.features.extraction import extract_shards
from stages.features.shard_store import ShardStore
from stages.features.shards import Shards
from stages.features.tokens import FeatureTable
from stages.segmentation.extract import SegmentationJob, val_views

moto_server = pytest.importorskip("moto.server")

COUNT = 7
SIZE = 3
KEYS = [(f"id{index:02d}", 0) for index in range(COUNT)]


@pytest.fixture(scope="module")
def bucket():
    """The URI of an empty bucket of a server on this machine."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        filesystem, _ = fs.FileSystem.from_uri("s3://features?allow_bucket_creation=true")
        filesystem.create_dir("features")
        yield "s3://features"
    server.stop()


@pytest.fixture
def shards(bucket, tmp_path):
    """A table in a folder of its own."""
    metadata = {"test": tmp_path.name}
    return Shards(tmp_path / "table", KEYS, metadata, SIZE, tmp_path / "waiting", location=f"{bucket}/run")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    rows = write_images(tmp_path_factory.mktemp("images"), [(24, 32)] * COUNT)
    return SegmentationJob(small_backbone(), val_views(rows), METADATA, COMPUTE, batch_size=2)


def objects(shards: Shards) -> dict[str, bytes]:
    """All files of the table in the bucket."""
    folder = shards.store.location.removeprefix("s3://")
    filesystem, _ = fs.FileSystem.from_uri("s3://features")
    files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return {file.base_name: filesystem.open_input_stream(file.path).read() for file in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_travel_through_the_bucket_and_end_in_the_bytes_of_a_local_folder(job, shards, tmp_path):
    extract_shards(job, shards, COMPUTE, "extract")
    assert sum(name.endswith(".parquet") for name in objects(shards)) == 3
    shards.commit()
    local = replace(shards, target=tmp_path / "local", location=None)
    extract_shards(job, local, COMPUTE, "extract")
    local.commit()
    assert contents(shards.target) == contents(local.target)
    assert len(FeatureTable(shards.target)) == COUNT
    assert objects(shards) == {}  # nothing is left in the bucket
    assert not shards.folder.exists()


def test_finished_shards_of_the_bucket_are_reused(job, shards, capsys):
    """By another machine, too: nothing but the bucket tells what is finished."""
    extract_shards(job, shards, COMPUTE, "extract")
    shards.store.delete_shard("00001.parquet")
    before = objects(shards)
    assert [shard.name for shard in shards.missing()] == ["00001.parquet"]
    other_machine = replace(shards, waiting=shards.waiting.with_name("other_machine"))
    capsys.readouterr()
    paths = extract_shards(job, other_machine, COMPUTE, "extract")
    assert "57%" in capsys.readouterr().err  # 4 of 7 views were there
    assert objects(shards).items() >= before.items()
    assert [path.parent for path in paths] == [other_machine.folder] * 3


def test_tables_of_other_params_have_a_folder_of_their_own(job, shards):
    """Clones and experiments share a bucket: none deletes what another one has extracted."""
    extract_shards(job, shards, COMPUTE, "extract")
    before = objects(shards)
    changed = replace(shards, metadata={"test": "other"})
    assert len(changed.missing()) == 3
    assert objects(shards) == before


def test_a_shard_that_was_damaged_in_the_bucket_is_refused(job, shards):
    extract_shards(job, shards, COMPUTE, "extract")
    shards.store.write("00002.parquet", b"damaged")
    with pytest.raises(InputError) as error_info:
        shards.collect()
    location = shards.store.location
    assert str(error_info.value) == f"{location}/00002.parquet is damaged; delete it and run the stage again"
    assert (shards.folder / "00002.parquet").read_bytes() != b"damaged"  # what was fetched before stays


def test_a_missing_bucket_is_named(job, shards):
    missing = replace(shards, location="s3://missing/run")
    with pytest.raises(InputError) as error_info:
        extract_shards(job, missing, COMPUTE, "extract")
    message = str(error_info.value)
    assert message.startswith("compute.store: s3://missing/run/")
    assert "bucket does not exist" in message


def test_a_folder_on_a_shared_disk_is_a_store(job, shards, tmp_path):
    shared = replace(shards, location=f"file://{tmp_path}/shared")
    extract_shards(job, shared, COMPUTE, "extract")
    shared.commit()
    assert len(FeatureTable(shared.target)) == COUNT


def test_a_server_that_does_not_answer_is_reported(shards, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = ShardStore("s3://features/unreachable")
    with pytest.raises(InputError) as error_info:
        store.read("x")
    assert str(error_info.value).startswith("compute.store: s3://features/unreachable: ")
