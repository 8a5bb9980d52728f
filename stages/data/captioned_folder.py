"""Captioned images without masks, as COCO, Flickr8k and Flickr30k are handed out.

Karpathy's splits    dataset*.json, whose images lie anywhere below the folder under their file names (Karpathy and
                     Fei-Fei, 2015); `restval` belongs to train, `test` is left out
COCO's own           annotations/captions_train*.json and captions_val*.json
"""

from pathlib import Path

from stages.core.stage import InputError
from stages.data.captions import collect_layout_errors, parse_captions, read_json
from stages.data.images import IMAGE_SUFFIXES
from stages.data.manifest import SPLITS, Manifest, Problems, Row, validate_manifest

KARPATHY = {"train": "train", "restval": "train", "val": "val"}
EXPECTED = "expected VOC's layout, Karpathy's dataset*.json or COCO's annotations/captions_{train,val}*.json"


def read_captioned_folder(root: Path) -> Manifest:
    """The validated manifest of such a folder; raises `InputError` listing all that is wrong with it."""
    faults, told = Problems(), {}
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for file, split in _files(root).items():
        held = read_json(file, faults)
        if held is None:
            continue
        told |= parse_captions(held, file, faults)
        with collect_layout_errors(file, faults):
            for one in held["images"]:
                if split:
                    listed[split].append(one["file_name"])
                elif one["split"] in KARPATHY:
                    listed[KARPATHY[one["split"]]].append(one["filename"])
    images = {path.name: path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    rows = [
        Row(Path(name).stem, split, str(images.get(name, root / name)), captions=told.get(Path(name).stem, ()))
        for split, names in listed.items()
        for name in names
    ]
    return validate_manifest(Manifest(tuple(rows), str(root), ()), faults)


def _files(root: Path) -> dict[Path, str | None]:
    """The files that list images and captions, each with the split that all of its images are of, if they are.

    Raises `InputError` for none, and for more than are meant.
    """
    found = dict.fromkeys(sorted(root.glob("dataset*.json")))
    if not found:
        found = {path: split for split in SPLITS for path in sorted(root.glob(f"annotations/captions_{split}*.json"))}
        if set(found.values()) != set(SPLITS):
            raise InputError(f"{root}: no JPEGImages/ here; {EXPECTED} (see stages/data)")
    if len(found) > max(1, len(set(found.values()))):
        names = ", ".join(path.name for path in found)
        raise InputError(f"{root}: {names}: more than one file of a split; leave those that are meant")
    return found
