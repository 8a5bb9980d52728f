"""The page in markdown: the data, the tasks' sections, and the versions of everything that the numbers depend on."""

from collections.abc import Iterable

from stages.core.runs import Run, package_versions
from stages.data.manifest import SPLITS, Manifest
from stages.params.model_source import display_name
from stages.report.section import Section

HASH_DIGITS = 12  # of a SHA-256, enough to tell files apart


def build_page(
    manifests: list[Manifest], profile: str, sections: Iterable[Section], from_store: bool, runs: list[Run]
) -> str:
    """The report in markdown; `from_store` says whether the metrics were read from MLflow."""
    source = (
        "Tables are read from the MLflow runs."
        if from_store
        else "The MLflow store could not be used: tables are read from the run records under `reports/runs`."
    )
    lines = [
        "# vitlab: a laboratory for vision transformers",
        "",
        f"Profile `{profile}`. Made by `dvc repro`; every number comes from a run. {source}",
        "",
        "## Data",
        "",
    ]
    for manifest in manifests:
        lines += [*describe_data(manifest), ""]
    for section in sections:
        lines += section.lines
    lines += ["---", "", _versions(runs), ""]
    return "\n".join(lines)


def describe_data(manifest: Manifest) -> list[str]:
    """A data set as list items: source, images, classes, captions and labels."""
    smallest = min(manifest.rows, key=lambda row: row.width * row.height)
    largest = max(manifest.rows, key=lambda row: row.width * row.height)
    sizes = dict.fromkeys(f"{row.width}x{row.height}" for row in (smallest, largest))
    counts = ", ".join(f"{len(manifest.split(split))} {split}" for split in SPLITS)
    captions = sum(len(row.captions) for row in manifest.rows)
    classes = f"{len(manifest.classes)} classes: {', '.join(manifest.classes)}" if manifest.classes else "No masks"
    return [
        f"- Source: `{manifest.source}`; license: {manifest.license}",
        f"- Images: {counts}; {' to '.join(sizes)} pixels",
        f"- {classes}",
        f"- Captions: {captions or 'none'}; labels: {len(manifest.labels) or 'none'}",
    ]


def _versions(runs: list[Run]) -> str:
    packages = package_versions("dvc", "mlflow", "pyarrow", "scikit-learn", "scipy", "matplotlib")
    manifests = {}
    weights = {}
    for run in runs:
        packages |= run.versions
        weights[display_name(run.inputs["backbone"])] = run.inputs["weights"]
        if {"source", "manifest"} <= run.inputs.keys():
            manifests[run.inputs["source"]] = run.inputs["manifest"]
    return (
        f"Packages: {', '.join(f'{name} {version}' for name, version in sorted(packages.items()))}. "
        f"Data: {', '.join(f'{name}, manifest `{digest[:HASH_DIGITS]}`' for name, digest in manifests.items())}. "
        f"Weights: {', '.join(f'{name} `{digest[:HASH_DIGITS]}`' for name, digest in weights.items())}. "
        "Seconds per stage and dates are in `reports/timings.json`, which is not committed."
    )
