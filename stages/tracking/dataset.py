"""The dataset of a run, as MLflow shows it: the manifest whose hash its record holds."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pyarrow as pa
from mlflow.entities import Dataset, DatasetInput

from stages.core.runs import Run
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, MANIFEST, SCHEMA

DIGEST_LENGTH = 8  # as long as MLflow's own digests; the param `inputs/manifest` has the whole hash
# MLflow's names of the manifest's types.
TYPES: dict[pa.DataType, dict] = {
    pa.string(): {"type": "string"},
    pa.int32(): {"type": "integer"},
    pa.list_(pa.string()): {"type": "array", "items": {"type": "string"}},
}


def dataset_input(run: Run) -> DatasetInput | None:
    """The dataset that a run was trained and evaluated on; None if its record holds no manifest's hash.

    The number of images and the columns are known if the manifest on this machine is the run's.
    """
    digest = run.inputs.get("manifest")
    if digest is None:
        return None
    dataset = _current_datasets().get(digest)
    if dataset is None:
        dataset = _dataset(digest, run.inputs.get("source", MANIFEST.stem), MANIFEST)
    return DatasetInput(dataset)


@cache  # the same for all runs of a report
def _current_datasets() -> dict[str, Dataset]:
    """The manifests on this machine, by hash."""
    datasets = {}
    for path in (MANIFEST, LABELED):
        if path.is_file():
            manifest = manifests.read_manifest(path)
            images = Counter(row.split for row in manifest.rows)
            profile = {"num_rows": len(manifest.rows), **images, "license": manifest.license}
            columns = [{"name": field.name, **TYPES[field.type], "required": not field.nullable} for field in SCHEMA]
            digest = manifests.manifest_hash(path)
            datasets[digest] = _dataset(
                digest,
                manifest.source,
                path,
                schema=json.dumps({"mlflow_colspec": columns}),
                profile=json.dumps(profile),
            )
    return datasets


def _dataset(digest: str, source: str, path: Path, **description: str) -> Dataset:
    location = json.dumps({"uri": str(path)})
    return Dataset(Path(source).name, digest[:DIGEST_LENGTH], "local", location, **description)
