"""Folders of captioned images without masks, in the layouts of COCO, Flickr8k and Flickr30k.

Karpathy's splits    dataset*.json, with images anywhere below the folder under their file names (Karpathy and Fei-Fei,
                     2015); `restval` belongs to train, `test` is left out
COCO                 annotations/captions_train*.json and captions_val*.json
"""

from pathlib import Path, PurePosixPath

from stages.core.messages import join_names, quote_value
from stages.core.stage import InputError
from stages.data.captions import collect_layout_errors, parse_captions, read_json
from stages.data.image_ids import file_name_problem
from stages.data.images import is_image
from stages.data.manifest import SPLITS, Manifest, Problems, Row, validate_manifest

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": None}


def read_captioned_folder(root: Path, max_pixels: int | None = None) -> Manifest:
    """Return the validated manifest of a captioned folder; raises `InputError` listing all problems."""
    problems = Problems()
    captions: dict[str, tuple[str, ...]] = {}
    file_names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path, split in _annotation_files(root).items():
        content = read_json(path, problems)
        if content is None:
            continue
        captions |= parse_captions(content, path, problems)
        with collect_layout_errors(path, problems):
            for image in content["images"]:
                image_split = split or KARPATHY_SPLITS[image["split"]]
                if image_split is None:
                    continue
                name = image["file_name" if split else "filename"]
                problem = file_name_problem(name)
                if problem:
                    problems.add(path, f"{quote_value(name)}: {problem}")
                else:
                    file_names[image_split].append(name)
    images: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if is_image(path):
            images.setdefault(path.name, []).append(path)
    rows = []
    for split, names in file_names.items():
        for name in names:
            image_id = PurePosixPath(name).stem
            path = _find_image(root, name, images, problems)
            rows.append(Row(image_id, split, str(path), captions=captions.get(image_id, ())))
    return validate_manifest(Manifest(tuple(rows), str(root), classes=()), problems, max_pixels)


def _find_image(root: Path, name: str, images: dict[str, list[Path]], problems: Problems) -> Path:
    """Return the file of this path below `root`, else the only file of this name; several are a problem."""
    path = root / name
    candidates = images.get(name, [])
    if path in candidates or not candidates:  # validation reports a missing file
        return path
    if len(candidates) > 1:
        problems.add(root, f"several files are named {name}: {join_names([str(path) for path in candidates])}")
    return candidates[0]


def _annotation_files(root: Path) -> dict[Path, str | None]:
    """Return the files that list images and captions, each with its split, or None if it lists all splits.

    Raises `InputError` if there are none, or several candidates for the same split.
    """
    files: dict[Path, str | None] = dict.fromkeys(sorted(root.glob("dataset*.json")))
    expected_count = 1
    if not files:
        for split in SPLITS:
            files |= dict.fromkeys(sorted(root.glob(f"annotations/captions_{split}*.json")), split)
        expected_count = len(SPLITS)
        if set(files.values()) != set(SPLITS):
            layouts = "VOC's layout, Karpathy's dataset*.json or COCO's annotations/captions_{train,val}*.json"
            raise InputError(f"{root}: no JPEGImages/ here; expected {layouts} (see stages/data)")
    if len(files) > expected_count:
        names = ", ".join(path.name for path in files)
        raise InputError(f"{root}: {names}: more than one file for a split; remove all but the one to use")
    return files
