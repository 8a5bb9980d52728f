"""Reading pictures and masks from disk, whatever their mode."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stages.core.stage import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_MODES = ("P", "L", "1")


def find_images(asked: list[Path]) -> dict[str, Path]:
    """The files asked for, and all images in the folders asked for, by name: in a folder, the path below it.

    Raises `InputError` for what is not there, a folder without images, or two files of one name.
    """
    found: dict[str, Path] = {}
    for path in asked:
        inside = _images_below(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
        for file in inside:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            if not file.is_file():
                raise InputError(f"{file}: missing")
            if found.setdefault(name, file) != file:
                raise InputError(f"{found[name]} and {file} would both be called '{name}'; ask for them one by one")
    return found


def _images_below(folder: Path) -> list[Path]:
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    images = [one for one in files if one.suffix.lower() in IMAGE_SUFFIXES]
    if len(images) < len(files):
        print(
            f"{folder}: {len(files) - len(images)} of {len(files)} files are left out, not being {', '.join(IMAGE_SUFFIXES)}"
        )
    return images


def read_image(path: Path) -> Image.Image:
    """An RGB picture, upright (EXIF orientation applied). Raises `OSError` where it is missing or truncated."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit gray at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """Class indices `(H, W)` uint8 of a palette or gray mask. Raises `OSError`, or `ValueError` for another mode."""
    with Image.open(path) as mask:
        if mask.mode not in MASK_MODES:
            raise ValueError(f"a mask of mode {mask.mode}; expected palette (P) or gray (L) class indices")
        return np.asarray(mask).astype(np.uint8)
