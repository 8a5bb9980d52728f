"""The page in markdown: the data, the tasks' sections, and the versions of everything that the numbers depend on."""

from collections.abc import Iterable
from typing import Any

from stages.core.runs import Run, package_versions
from stages.data.manifest import SPLITS, Manifest
from stages.params.model_source import display_name
from stages.report.section import Section, render


def build_page(
    manifests: list[Manifest], profile: str, sections: Iterable[Section], from_store: bool, runs: list[Run]
) -> str:
    """The report in markdown; `from_store` says whether the metrics were read from MLflow."""
    packages = package_versions("dvc", "mlflow", "pyarrow", "scikit-learn", "scipy", "matplotlib")
    manifest_hashes = {}
    weight_hashes = {}
    for run in runs:
        packages |= run.versions
        weight_hashes[display_name(run.inputs["backbone"])] = run.inputs["weights"]
        if {"source", "manifest"} <= run.inputs.keys():
            manifest_hashes[run.inputs["source"]] = run.inputs["manifest"]
    return render(
        "page.md",
        profile=profile,
        from_store=from_store,
        data=[describe_data(manifest) for manifest in manifests],
        sections=sections,
        packages=dict(sorted(packages.items())),
        manifest_hashes=manifest_hashes,
        weight_hashes=weight_hashes,
    )


def describe_data(manifest: Manifest) -> dict[str, Any]:
    """What the page says of a data set."""
    smallest = min(manifest.rows, key=lambda row: row.width * row.height)
    largest = max(manifest.rows, key=lambda row: row.width * row.height)
    sizes = dict.fromkeys(f"{row.width}x{row.height}" for row in (smallest, largest))
    return {
        "source": manifest.source,
        "license": manifest.license,
        "images": ", ".join(f"{len(manifest.split(split))} {split}" for split in SPLITS),
        "pixels": " to ".join(sizes),
        "classes": manifest.classes,
        "captions": sum(len(row.captions) for row in manifest.rows) or "none",
        "labels": len(manifest.labels) or "none",
    }
