"""The engine `ray`: Ray Data maps the missing shards over a pool of actors, each with a model of its own.

An actor runs what the local engine runs, `compute_shards`, on a few shards at a time, and stores each one itself; only
shard names return. So a killed actor loses the shards that it had begun: Ray starts it again on the same shards, and
the finished ones are skipped. A killed driver loses as much.

Every node needs this repository at the same path, with the images in it, and the same packages. Shards travel through
the shared folder, or through `compute.store`.
"""

import logging
import os
import pickle
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from stages.core.stage import InputError
from stages.features.extraction import ShardJob, compute_shards
from stages.features.shard_store import ShardStore
from stages.features.shards import Shard, Shards
from stages.params.compute import Compute, RayCluster

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    import ray.data
except ImportError as error:
    raise InputError("compute.engine = 'ray': Ray is not installed; run `make setup-ray`") from error

CHUNKS_PER_ACTOR = 4  # so that actors that finish early take over from slow ones
MAX_CHUNK = 32  # shards


class ShardActor:
    """Computes shards in a process of its own. Ray Data calls it with a few shards, and it yields a row for each.

    A row has the shard's number of `rows`, or the pickled `error` of input that cannot be read: Ray would add lines to
    its message, and would start an actor whose constructor fails again and again.
    """

    def __init__(self, job: "list[ray.ObjectRef[ShardJob]]", store: ShardStore, root: str, threads: int, workers: int):
        self.job_reference = job
        self.store = store
        self.root = root
        self.threads = threads
        self.workers = workers

    @cached_property
    def job(self) -> ShardJob:
        """The job, ready to compute."""
        try:
            os.chdir(self.root)  # the manifest has relative paths
        except OSError as error:
            problem = f"node {socket.gethostname()}: {self.root}: {error.strerror}"
            raise InputError(f"{problem}; every node must see the repository at the same path") from error
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)  # as a stage does in its own process
        job = ray.get(self.job_reference[0])
        job.prepare()
        return job

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list]]:
        names, starts, stops = (batch[column].tolist() for column in ("name", "start", "stop"))
        shards = [Shard(name, range(start, stop)) for name, start, stop in zip(names, starts, stops, strict=True)]
        try:
            finished = self.store.finished()  # by an actor that was killed before it could say so
            for shard in shards:
                if shard.name in finished:
                    yield {"rows": [len(shard.rows)], "error": [b""]}
            missing = [shard for shard in shards if shard.name not in finished]
            for shard in compute_shards(self.job, missing, self.store, self.workers, progress=lambda rows: None):
                yield {"rows": [len(shard.rows)], "error": [b""]}
        except (InputError, OSError) as error:
            yield {"rows": [0], "error": [pickle.dumps(error)]}


def extract(job: ShardJob, shards: Shards, missing: list[Shard], compute: Compute, bar: tqdm) -> None:
    """Compute the missing shards on the cluster of `RAY_ADDRESS`, or on a cluster of this machine alone.

    Raises `InputError` of an actor as the local engine does, and if the cluster is too small.
    """
    connected = ray.is_initialized()
    if not connected:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        _run(job, shards, missing, compute, bar)
    finally:
        if not connected:
            ray.shutdown()


def _run(job: ShardJob, shards: Shards, missing: list[Shard], compute: Compute, bar: tqdm) -> None:
    actors, gpus = plan_actors(compute.ray, ray.cluster_resources())
    actors = min(actors, len(missing))
    chunk = max(1, min(MAX_CHUNK, len(missing) // (actors * CHUNKS_PER_ACTOR)))
    items = [{"name": shard.name, "start": shard.rows.start, "stop": shard.rows.stop} for shard in missing]
    store = shards.store
    if store.is_local:
        store = replace(store, location=str(Path(store.location).absolute()))

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `bar` is one
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    # Weights of a GPU could only be read by a process with that GPU.
    device = next(job.model.parameters()).device
    job.model.to("cpu")
    # In a list, Ray passes the reference on instead of the object, and this process keeps the object for later actors.
    job_reference = [ray.put(job)]
    job.model.to(device)
    dataset = ray.data.from_items(items, override_num_blocks=-(-len(items) // chunk)).map_batches(
        ShardActor,
        batch_size=chunk,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=compute.ray.cpus,
        num_gpus=gpus,
        fn_constructor_args=(job_reference, store, str(Path.cwd()), compute.ray.cpus, compute.workers),
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in dataset.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        bar.update(row["rows"])


def plan_actors(params: RayCluster, resources: dict[str, float]) -> tuple[int, int]:
    """Return the number of actors and of GPUs per actor for a cluster with `resources`, as Ray counts them.

    Raises `InputError` if the cluster has no room for them.
    """
    gpus = 1 if resources.get("GPU", 0) >= 1 else 0
    room = int(resources.get("CPU", 0)) // params.cpus
    if gpus:
        room = min(room, int(resources["GPU"]))
    actors = max(1, room) if params.actors == "auto" else params.actors
    if actors > room:
        size = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
        problem = f"compute.ray: the cluster has {size}: room for {room} actors of {params.cpus} CPUs"
        raise InputError(f"{problem}{' and 1 GPU' if gpus else ''}, not for {actors}")
    return actors, gpus
