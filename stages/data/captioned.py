"""Captioned images without masks, as COCO, Flickr8k and Flickr30k are handed out.

Karpathy's splits    dataset*.json, whose images lie anywhere below the folder under their file names (Karpathy and
                     Fei-Fei, 2015); `restval` belongs to train, `test` is left out
COCO's own           annotations/captions_train*.json and captions_val*.json
"""

from pathlib import Path

from stages.data.captions import read_captions, read_json
from stages.data.images import SUFFIXES
from stages.data.manifest import SPLITS, Faults, Manifest, Row, validate
from stages.stage import InputError

KARPATHY = {"train": "train", "restval": "train", "val": "val"}
EXPECTED = "expected VOC's layout, Karpathy's dataset*.json or COCO's annotations/captions_{train,val}*.json"


def read_captioned(root: Path) -> Manifest:
    """The validated manifest of such a folder; raises `InputError` listing all that is wrong with it."""
    faults = Faults()
    if found := sorted(root.glob("dataset*.json")):
        listed, files = _karpathy(found[0], faults), [found[0]]
    else:
        by_split = {split: sorted(root.glob(f"annotations/captions_{split}*.json")) for split in SPLITS}
        if not all(by_split.values()):
            raise InputError(f"{root}: no JPEGImages/ here; {EXPECTED} (see stages/data)")
        files = [paths[0] for paths in by_split.values()]
        listed = {split: _coco(paths[0], faults) for split, paths in by_split.items()}
    told = {image_id: some for file in files for image_id, some in read_captions(file, faults).items()}
    images = {path.name: path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES}
    rows = [
        Row(Path(name).stem, split, str(images.get(name, root / name)), captions=told.get(Path(name).stem, ()))
        for split, names in listed.items()
        for name in names
    ]
    return validate(Manifest(tuple(rows), str(root), ()), faults)


def _karpathy(path: Path, faults: Faults) -> dict[str, list[str]]:
    """File names by split."""
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for one in (read_json(path, faults) or {}).get("images", []):
        if one.get("split") in KARPATHY:
            listed[KARPATHY[one["split"]]].append(one["filename"])
    return listed


def _coco(path: Path, faults: Faults) -> list[str]:
    return [one["file_name"] for one in (read_json(path, faults) or {}).get("images", [])]
