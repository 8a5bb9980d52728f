"""Extraction on a Ray cluster of two nodes, on this machine: the bytes of the local engine, whoever is killed.

Skipped without Ray (`make setup-ray`).
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, untrained_blip
from small_checkpoints import small_backbone
from small_extraction import COMPUTE, METADATA, caption_job, states_job, write_images

from stages.core.stage import InputError
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.image_text.pixels import train_dataset
from stages.image_text.retrieval_vectors import ViewVectorsJob
from stages.image_text.towers import load_towers
from stages.params.compute import RayCluster
from stages.segmentation.extract import SegmentationJob, val_views

ray = pytest.importorskip("ray")
from ray import cloudpickle  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from stages.features.ray_engine import plan_actors  # noqa: E402

COUNT = 11  # images, in four shards of 3, 3, 3 and 2
SIZE = 3
KEYS = [(f"id{index:02d}", 0) for index in range(COUNT)]
RAY = COMPUTE.model_copy(update={"engine": "ray", "ray": RayCluster(actors=2, cpus=1)})
TIMEOUT = 300  # seconds until a test gives up on the cluster

# Actors run in processes that cannot import this file: its classes travel as a whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each, and this process as their driver."""
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), [(24, 32)] * COUNT)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def jobs(rows, backbone, tmp_path_factory):
    """One job of each kind."""
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder)
    towers = load_towers(folder, COMPUTE)
    views = train_dataset(rows, towers.pixels.side, list(range(COUNT)), 0.5)
    return {
        "segmentation": SegmentationJob(backbone, val_views(rows), METADATA, COMPUTE, batch_size=2),
        "states": states_job(towers, rows),
        "vectors": ViewVectorsJob(towers, views, KEYS, {"backbone": "tiny"}),
        "captions": caption_job(towers, rows, folder),
    }


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "ray", KEYS, {"weights": "w"}, SIZE, waiting=tmp_path / "waiting")


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def local_contents(job, shards: Shards) -> dict[str, bytes]:
    """The shards of the local engine."""
    return contents(extract_shards(job, replace(shards, target=shards.target.with_name("local")), COMPUTE, "local"))


@dataclass
class SlowJob(SegmentationJob):
    """Takes its time for every batch, so that a test can kill its process half-way."""

    def forward(self, inputs):
        time.sleep(1)
        return super().forward(inputs)


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {TIMEOUT} s"
        time.sleep(0.05)


def shard_times(shards: Shards) -> dict[str, int]:
    """When each finished shard was written."""
    return {name: (shards.folder / name).stat().st_mtime_ns for name in shards.store.finished()}


@pytest.mark.parametrize("name", ["states", "vectors", "captions"])
def test_a_cluster_writes_the_bytes_of_the_local_engine(cluster, jobs, name, shards, capsys):
    paths = extract_shards(jobs[name], shards, RAY, "cluster")
    assert contents(paths) == local_contents(jobs[name], shards)
    assert f"{COUNT}/{COUNT}" in capsys.readouterr().err  # the progress bar counts rows as they arrive


def test_a_killed_worker_loses_nothing(cluster, jobs, shards):
    """An actor is killed after the first shard is stored: that one is not computed again, and nothing is missing."""
    job = SlowJob(**vars(jobs["segmentation"]))
    before_kill: dict[str, int] = {}
    killed = []

    def kill_an_actor():
        wait_for(shards.store.finished, "finished shard")
        before_kill.update(shard_times(shards))
        actors = [process for process in psutil.process_iter(["cmdline"]) if "ray::MapWorker" in str(process.info)]
        actors[0].kill()
        killed.append(actors[0].pid)

    killer = threading.Thread(target=kill_an_actor)
    killer.start()
    paths = extract_shards(job, shards, RAY, "cluster")
    killer.join()
    assert killed
    assert len(before_kill) < len(paths)  # it was half-way
    assert shard_times(shards).items() >= before_kill.items()
    assert contents(paths) == local_contents(jobs["segmentation"], shards)


DRIVER = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from ray import cloudpickle
from stages.core.stage import stage
from stages.features.extraction import extract_shards
job, shards, compute = cloudpickle.loads(Path({arguments!r}).read_bytes())
with stage("driver", record=False):
    extract_shards(job, shards, compute, "driver")
"""


def start_driver(cluster, folder: Path, job, shards: Shards) -> subprocess.Popen:
    """Start a process that extracts on the cluster, as a stage does."""
    arguments = folder / "arguments.pickle"
    arguments.write_bytes(cloudpickle.dumps((job, shards, RAY)))
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(tests=str(ROOT / "tests"), arguments=str(arguments))],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_driver_loses_nothing(cluster, jobs, shards, tmp_path):
    """The next run computes the shards that were not finished, and leaves the others as they are."""
    process = start_driver(cluster, tmp_path, SlowJob(**vars(jobs["segmentation"])), shards)
    wait_for(lambda: shards.store.finished() or process.poll() is not None, "finished shard")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = shard_times(shards)
    assert 0 < len(before) < 4
    paths = extract_shards(jobs["segmentation"], shards, RAY, "cluster")
    assert shard_times(shards).items() >= before.items()
    assert contents(paths) == local_contents(jobs["segmentation"], shards)


def test_an_unreadable_image_ends_the_stage_in_one_line(cluster, jobs, shards, rows, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"not an image")
    views = val_views((*rows[:-1], replace(rows[-1], image=str(damaged))))
    process = start_driver(cluster, tmp_path, replace(jobs["segmentation"], views=views), shards)
    _, output = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert output.strip().splitlines()[-1] == f"driver: cannot identify image file '{damaged}'"
    assert "Traceback" not in output


# What a cluster has room for


@pytest.mark.parametrize(
    ("actors", "cpus", "resources", "expected"),
    [
        ("auto", 2, {"CPU": 9.0}, (4, 0)),
        (3, 2, {"CPU": 9.0}, (3, 0)),
        ("auto", 2, {"CPU": 64.0, "GPU": 8.0}, (8, 1)),
        ("auto", 16, {"CPU": 64.0, "GPU": 8.0}, (4, 1)),
    ],
)
def test_actors_fill_the_cluster(actors, cpus, resources, expected):
    assert plan_actors(RayCluster(actors=actors, cpus=cpus), resources) == expected


@pytest.mark.parametrize("actors", ["auto", 1])
def test_a_cluster_without_room_is_an_error(actors):
    with pytest.raises(InputError) as error_info:
        plan_actors(RayCluster(actors=actors, cpus=4), {"CPU": 2.0})
    message = "compute.ray: the cluster has 2 CPUs and 0 GPUs: room for 0 actors of 4 CPUs, not for 1"
    assert str(error_info.value) == message
