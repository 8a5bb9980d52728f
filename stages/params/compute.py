"""How runs are computed: precision, compilation, data loading processes, live recording, and on which machines."""

from typing import Annotated, Literal

from pydantic import StrictBool, StringConstraints

from stages.params.section import Between, Section, expects

Workers = Annotated[int, Between(0, 256)]
# pyarrow opens such a folder. Endpoint and credentials come from the environment (`AWS_ENDPOINT_URL` and so on).
StoreUri = Annotated[
    str,
    StringConstraints(pattern=r"^(s3|gs|file)://[^?#]+$"),
    expects("null or the URI of a folder: s3://, gs:// or file://"),
]


class RayCluster(Section):
    """The processes that extract on a Ray cluster, each with a model of its own.

    `actors` is their number; `auto` starts as many as fit, one per GPU where the cluster has some. `cpus` is the number
    of cores that each reserves, for its data loading processes and for what it computes without a GPU, with as many
    threads. On CPUs, results are those of a local run with this number of threads.
    """

    actors: Annotated[int, Between(1, 100_000)] | Literal["auto"]
    cpus: Annotated[int, Between(1, 256)]


class Compute(Section):
    """`precision` applies to frozen backbones and to fine-tuning; `compile` to frozen backbones.

    `workers` is the number of data loading processes; `live` records runs in MLflow while they train. `engine` is what
    runs extraction and captioning, on this machine or on the cluster `ray`; `store` is the object store where their
    finished shards wait. These change no result, so no stage in `dvc.yaml` depends on them.
    """

    precision: Literal["float32", "bfloat16", "float16"]
    compile: StrictBool
    workers: Workers
    live: StrictBool
    # With defaults, as they are for clusters only.
    engine: Literal["local", "ray"] = "local"
    store: StoreUri | None = None
    ray: RayCluster = RayCluster(actors="auto", cpus=2)


# For code outside the pipeline: plain float32 in this process.
FLOAT32 = Compute(precision="float32", compile=False, workers=0, live=False)
