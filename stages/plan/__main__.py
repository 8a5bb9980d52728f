"""What a run would download, compute and store: nothing of it is done.

make plan PROFILE=paper
python -m stages.plan paper paper.captions=captions.json compute.precision=bfloat16
"""

import argparse
import platform
import shutil
from pathlib import Path

import psutil
import torch
from ruamel.yaml import YAML, YAMLError
from tqdm import tqdm

from stages.core.stage import InputError, stage
from stages.params.experiment import Experiment
from stages.params.section import PARAMS, read_params, validate_params
from stages.plan.downloads import Download, downloads_of
from stages.plan.placeholder_models import models_of
from stages.plan.sizes import Images, images_of
from stages.plan.storage import Stored, stored_by
from stages.plan.work import Work, work_of
from stages.report.tables import Table

UNITS = ("B", "kB", "MB", "GB", "TB")


def in_bytes(size: int | None) -> str:
    """`1.99 GB`; `?` for nobody knows."""
    if size is None:
        return "?"
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def in_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def download_table(found: list[Download]) -> Table:
    """What comes over the network."""
    rows = [
        (
            one.what,
            one.origin,
            str(one.target),
            in_bytes(one.size) + (f" ({one.how})" if one.how and one.size else ""),
            "yes" if one.there else "no",
        )
        for one in found
    ]
    left = [one for one in found if not one.there]
    unknown = sum(one.size is None for one in left)
    total = in_bytes(sum(one.size or 0 for one in left)) + (f" and {unknown} unknown" if unknown else "")
    rows.append(("still to download", "", "", total, ""))
    return Table("Download", ("What", "From", "To", "Size", "There"), tuple(rows), left=3)


def work_table(found: list[Work], device: str) -> Table:
    """What is computed, stage by stage."""
    rows = [(one.stage, one.what, str(one.count), f"{1 / one.each:.3g}", in_time(one.seconds)) for one in found]
    rows.append(("all of them", "", "", "", in_time(sum(one.seconds for one in found))))
    return Table(f"Compute, on {device}", ("Stage", "What", "Units", "A second", "Time"), tuple(rows), left=2)


def store_table(found: list[Stored]) -> Table:
    """What is kept."""
    rows = [(one.path, one.how, in_bytes(one.size)) for one in found]
    kept = sum(one.size for one in found if not one.path.startswith("data/downloads"))
    rows.append(("all of them, and once more in DVC's cache", "without what was downloaded", in_bytes(2 * kept)))
    return Table("Store", ("Path", "What", "Size"), tuple(rows), left=2)


def device_name(experiment: Experiment) -> str:
    """The device, and the precision that params ask for."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {experiment.compute.precision}"
    return f"{torch.get_num_threads()} cores ({platform.machine()}), {experiment.compute.precision}"


def peak_memory() -> str:
    """What is held once all is measured; on a GPU, the most that was."""
    held = psutil.Process().memory_info()
    resident = in_bytes(getattr(held, "peak_wset", held.rss))
    return f"{resident} of memory" + (
        f", {in_bytes(torch.cuda.max_memory_allocated())} on the GPU" if torch.cuda.is_available() else ""
    )


def facts(experiment: Experiment, images: Images, pets: Images, counted: bool) -> list[str]:
    """What the plan is of."""
    how = "counted" if counted else "as params expect them; native images taken as 500x375 pixels"
    lines = [
        f"Profile {experiment.profile}. Nothing is downloaded, computed or written by this plan.",
        f"Images ({how}): {images.train} train, {images.val} val, {images.captions} captions; "
        f"for classification {pets.train} train, {pets.val} val.",
    ]
    if not images.captions:
        lines.append("No captions: Tables 2 to 5 will be left out. Name a file or an address in paper.captions.")
    return lines


def asked(profile: str | None, changes: list[str]) -> Experiment:
    """`params.yaml` with a profile and `KEY=VALUE`, as `dvc exp run -S` would change it. Raises `InputError`."""
    content = read_params()
    if profile:
        content["profile"] = profile
    for change in changes:
        key, _, value = change.partition("=")
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section.get(name)
            if not isinstance(section, dict):
                raise InputError(f"{PARAMS} has no key '{key}'")
        try:
            section[last] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as fault:
            raise InputError(f"{key} = {value}: no YAML") from fault
    return validate_params(Experiment, content)


def main(profile: str | None, changes: list[str]) -> None:
    experiment = asked(profile, changes)
    images, pets, counted = images_of(experiment)
    print("", *facts(experiment, images, pets, counted), sep="\n")
    try:
        found, models = downloads_of(experiment), models_of(experiment)
    except (ValueError, OSError) as fault:
        raise InputError(str(fault)) from fault
    print("", download_table(found).plain(), sep="\n")
    if experiment.captioning.model == "catr":
        print("Captions are planned as BLIP's: CATR's states are smaller, and were not measured.")
    kept = stored_by(experiment, images, pets, models)
    print("", store_table(kept).plain(), sep="\n")
    free = shutil.disk_usage(Path.cwd()).free
    print(f"Free on this disk: {in_bytes(free)}.", "", sep="\n")
    bar = tqdm(work_of(experiment, images, pets, models), "measure", unit="part", leave=False)
    print(work_table(list(bar), device_name(experiment)).plain())
    print(
        f"\nMeasured now, a few calls of each model; data loading by {experiment.compute.workers} processes. "
        f"The measurements took {peak_memory()}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", help=f"embedded, folder or paper; that of {PARAMS} if not given")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="params that would be changed with -S")
    told = parser.parse_args()
    words = [told.profile, *told.changes] if told.profile else []
    with stage("plan"):
        main(*([None, words] if words and "=" in words[0] else [told.profile, told.changes]))
