"""The names of the pipeline's stages, read from its files: asking DVC takes seconds."""

from itertools import product
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")


def stage_names(pipeline: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """The stages that `dvc repro` may run, as DVC names them, in the order of `dvc.yaml`; frozen ones are left out.

    A stage with a matrix is one stage per combination: `train_head@linear-1`. `pipeline` is the content of `dvc.yaml`.
    """
    names = []
    for name, stage in pipeline["stages"].items():
        if stage.get("frozen"):
            continue
        axes = [_matrix_axis(values, params) for values in stage.get("matrix", {}).values()]
        for combination in product(*axes):
            suffix = "-".join(str(value) for value in combination)
            names.append(f"{name}@{suffix}" if suffix else name)
    return names


def _matrix_axis(reference: str, params: dict[str, Any]) -> list[Any]:
    """The values or names at a reference to the params such as `${segmentation.heads}`."""
    value: Any = params
    for key in reference.removeprefix("${").removesuffix("}").split("."):
        value = value[key]
    return list(value)


def read_pipeline(path: Path = PIPELINE) -> dict[str, Any]:
    """The content of `dvc.yaml`."""
    return YAML(typ="safe").load(path)


def finished_stages(lock: Path = LOCK) -> set[str]:
    """The stages that have ever finished here or in the commit: those in `dvc.lock`. Empty without the file."""
    if not lock.exists():
        return set()
    return set(YAML(typ="safe").load(lock)["stages"])
