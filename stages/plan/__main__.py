"""What a run would download, compute and store, without doing it.

vitlab plan paper
vitlab plan paper paper.captions=captions.json compute.precision=bfloat16
"""

import argparse
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from stages.core.stage import InputError, stage
from stages.params.experiment import Experiment
from stages.params.section import PARAMS, read_params, validate_params
from stages.plan.dataset_sizes import dataset_sizes
from stages.plan.downloads import Download, list_downloads
from stages.plan.overrides import apply_overrides
from stages.plan.placeholder_models import build_models
from stages.plan.storage import Stored, list_stored
from stages.plan.work import Work, measure_work
from stages.report.tables import Table


def format_bytes(size: int | None) -> str:
    """`1.99 GB`; `?` if unknown."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_seconds(seconds: float) -> str:
    """`40 s`, `12 min`, `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def download_table(downloads: list[Download]) -> Table:
    """What comes over the network."""
    rows = []
    for download in downloads:
        size = format_bytes(download.size) + (f" ({download.note})" if download.size and download.note else "")
        exists = "yes" if download.exists else "no"
        rows.append((download.name, download.origin, str(download.target), size, exists))
    missing = [download.size for download in downloads if not download.exists]
    unknown = f" and {missing.count(None)} unknown" if None in missing else ""
    rows.append(("still to download", "", "", format_bytes(sum(size or 0 for size in missing)) + unknown, ""))
    return Table.from_rows("Download", ("What", "From", "To", "Size", "Exists"), rows, left=3)


def storage_table(outputs: list[Stored]) -> Table:
    """What is stored."""
    rows = [(output.path, output.content, format_bytes(output.size)) for output in outputs]
    cached = sum(output.size for output in outputs if not output.path.startswith("data/downloads"))
    rows.append(("total, with the copy in DVC's cache", "without downloads", format_bytes(2 * cached)))
    return Table.from_rows("Store", ("Path", "What", "Size"), rows, left=2)


def work_table(work: list[Work]) -> Table:
    """What is computed, stage by stage."""
    rows = []
    for part in work:
        rate = f"{1 / part.unit_seconds:.3g}"
        rows.append((part.stage, part.description, str(part.count), rate, format_seconds(part.seconds)))
    rows.append(("total", "", "", "", format_seconds(sum(part.seconds for part in work))))
    cpu = f"{torch.get_num_threads()} cores ({platform.machine()})"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    columns = ("Stage", "What", "Units", "Units/s", "Time")
    return Table.from_rows(f"Compute, on {device}", columns, rows, left=2)


def override_params(profile: str | None, overrides: list[str]) -> Experiment:
    """`params.yaml` with a profile and `KEY=VALUE` overrides, as `dvc exp run -S` applies them.

    Raises `InputError` for an unknown key or an invalid value.
    """
    params = read_params()
    if profile:
        params["profile"] = profile
    apply_overrides(params, overrides)
    return validate_params(Experiment, params)


def main(profile: str | None, overrides: list[str]) -> None:
    experiment = override_params(profile, overrides)
    images, labeled = dataset_sizes(experiment)
    try:
        downloads = list_downloads(experiment)
        models = build_models(experiment)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error

    height, width = images.image_size
    print(
        f"\nProfile {experiment.profile}. "
        "This plan downloads nothing and writes nothing; it measures a few calls of each model.\n"
        f"Images: {images.train} train, {images.val} val of about {width}x{height}, {images.captions} captions; "
        f"for classification {labeled.train} train, {labeled.val} val."
    )
    if not images.captions:
        print("No captions: Tables 2 to 5 will be left out. Name a file or an address in paper.captions.")
    if experiment.captioning.model == "catr":
        print("Captioning is planned with BLIP: CATR's image states are smaller, and were not measured.")
    print("", download_table(downloads).plain(), sep="\n")
    print("", storage_table(list_stored(experiment, images, labeled, models)).plain(), sep="\n")
    print(f"Free on this disk: {format_bytes(shutil.disk_usage(Path.cwd()).free)}.\n")

    work = list(tqdm(measure_work(experiment, images, labeled, models), "measure", unit="part", leave=False))
    memory = f"{format_bytes(psutil.Process().memory_info().rss)} of memory"
    if torch.cuda.is_available():
        memory += f", {format_bytes(torch.cuda.max_memory_allocated())} on the GPU"
    print(work_table(work).plain())
    print(
        f"\nMeasured now, in {experiment.compute.precision}, a few calls of each model; data loading by "
        f"{experiment.compute.workers} processes. The measurements took {memory}."
    )


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", help=f"embedded, folder or paper; default: that of {PARAMS}")
    override_help = "params to change, as with dvc exp run -S: KEY=VALUE, +KEY=VALUE for a new key, ~KEY to remove one"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=override_help)
    args = parser.parse_args(arguments)
    if args.profile and ("=" in args.profile or args.profile.startswith("~")):  # overrides without a profile
        args.overrides.insert(0, args.profile)
        args.profile = None
    with stage("plan", record=False):
        main(args.profile, args.overrides)


if __name__ == "__main__":
    run_command()
