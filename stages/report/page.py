"""The page in markdown: the original's tables, the data, the tasks' sections, and what the numbers depend on."""

from collections.abc import Sequence
from typing import Any

from stages.core.messages import join_names
from stages.core.runs import Run, package_versions
from stages.data.manifest import SPLITS, Manifest
from stages.params.model_source import display_name
from stages.report.markdown import Markdown
from stages.report.section import Section, render

# With fewer validation images n, an accuracy of 50 % has a 95 % interval of more than 14 points to each side:
# 1.96 * sqrt(0.25 / n).
SMOKE_RUN_IMAGES = 50
REPORT_PACKAGES = ("dvc", "mlflow", "pandas", "pyarrow", "scikit-learn", "scipy", "matplotlib")


def build_page(
    manifests: list[Manifest],
    profile: str,
    sections: Sequence[Section],
    claims: Markdown,
    from_store: bool,
    runs: list[Run],
) -> Markdown:
    """The report in markdown; `from_store` says whether the metrics were read from MLflow."""
    users = version_users(runs)
    mixed = {}
    for package, versions in sorted(users.items()):
        if len(versions) > 1:
            mixed[package] = {version: join_names(names, limit=6) for version, names in versions.items()}
    manifest_hashes = {}
    weight_hashes = {}
    for run in runs:
        if not run.params.get("random"):  # a compared backbone with weights that are not those of its source
            weight_hashes[display_name(run.inputs["backbone"])] = run.inputs["weights"]
        if {"source", "manifest"} <= run.inputs.keys():
            manifest_hashes[run.inputs["source"]] = run.inputs["manifest"]
    return render(
        "page.md",
        profile=profile,
        smoke_run_images=count_smoke_run_images(manifests),
        from_store=from_store,
        tables=[table for section in sections for table in section.assigned.values() if table],
        data=[describe_data(manifest) for manifest in manifests],
        sections=sections,
        claims=claims,
        packages={package: " and ".join(versions) for package, versions in sorted(users.items())},
        mixed=mixed,
        manifest_hashes=manifest_hashes,
        weight_hashes=weight_hashes,
    )


def count_smoke_run_images(manifests: list[Manifest]) -> int | None:
    """The smallest number of validation images, if it is too small for a number to mean anything; None otherwise."""
    images = min(len(manifest.split("val")) for manifest in manifests)
    return images if images < SMOKE_RUN_IMAGES else None


def version_users(runs: list[Run]) -> dict[str, dict[str, list[str]]]:
    """By package and version, the runs that were made with it; `report` stands for the page itself.

    Records are kept while their stages' inputs stay the same, and packages are none of these: after an upgrade, one
    page may show runs of several versions.
    """
    versions_by_user = {f"{run.task}/{run.key}": run.versions for run in runs}
    versions_by_user["report"] = package_versions(*REPORT_PACKAGES)
    users: dict[str, dict[str, list[str]]] = {}
    for user, versions in versions_by_user.items():
        for package, version in versions.items():
            users.setdefault(package, {}).setdefault(version, []).append(user)
    return users


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
