"""Find image files, and read images and masks of any color mode."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stages.core.stage import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_MODES = ("P", "L", "1")  # Pillow's palette, 8-bit gray and 1-bit


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file is an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def find_images(paths: list[Path]) -> dict[str, Path]:
    """Return image files by name, from paths of files and of folders.

    A file is named by its file name, a file in a folder by its path relative to that folder. Raises `InputError` for
    a missing path, a folder without images, and two files with the same name.
    """
    images: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = {str(file.relative_to(path)): file for file in _images_below(path)}
        elif path.is_file():
            files = {path.name: path}
        else:
            raise InputError(f"{path}: missing")
        for name, file in files.items():
            if images.setdefault(name, file) != file:
                raise InputError(f"{images[name]} and {file} would both be called '{name}'; pass one of them at a time")
    return images


def _images_below(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if is_image(path)]
    suffixes = ", ".join(IMAGE_SUFFIXES)
    if not images:
        raise InputError(f"{folder}: no images in this folder ({suffixes})")
    if len(images) < len(files):
        skipped = len(files) - len(images)
        print(f"{folder}: skipped {skipped} of {len(files)} files, whose names do not end in {suffixes}")
    return images


def read_image(path: Path) -> Image.Image:
    """Return an upright RGB image (EXIF orientation applied). Raises `OSError` if it is missing or truncated."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            # Pillow converts 16-bit gray to RGB by clipping at 255, so keep the upper 8 bits instead.
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """Return the class indices `(H, W)` uint8 of a palette or gray mask.

    Raises `OSError` if it is missing or truncated, and `ValueError` for another color mode.
    """
    with Image.open(path) as mask:
        if mask.mode not in MASK_MODES:
            raise ValueError(f"a mask of mode {mask.mode}; expected palette (P) or gray (L) class indices")
        return np.asarray(mask).astype(np.uint8)
