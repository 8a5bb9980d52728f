"""The page in markdown: the original's tables, the data, the tasks' sections, and what the numbers depend on."""

from collections.abc import Sequence
from typing import Any

from stages.core.runs import Run, package_versions
from stages.data.manifest import SPLITS, Manifest
from stages.params.model_source import display_name
from stages.report.markdown import Markdown
from stages.report.section import Section, render


def build_page(
    manifests: list[Manifest],
    profile: str,
    sections: Sequence[Section],
    claims: Markdown,
    from_store: bool,
    runs: list[Run],
) -> Markdown:
    """The report in markdown; `from_store` says whether the metrics were read from MLflow."""
    packages = package_versions("dvc", "mlflow", "pandas", "pyarrow", "scikit-learn", "scipy", "matplotlib")
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
        tables=[table for section in sections for table in section.assigned.values() if table],
        data=[describe_data(manifest) for manifest in manifests],
        sections=sections,
        claims=claims,
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
