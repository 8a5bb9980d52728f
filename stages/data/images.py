"""Find image files, and read images and masks of any color mode."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stages.core.stage import InputError
from stages.data.files import require_regular_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What files of these suffixes hold, and GIF, which some images of Oxford-IIIT Pet are. Pillow has decoders of many more
# formats, and starts other programs for some.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
WIDE_MODES = ("I", "F")  # Pillow's 32-bit integers, 16-bit ones (I;16 and its byte orders) and floats
MASK_MODES = ("P", "L", "1")  # Pillow's palette, 8-bit gray and 1-bit
LOSSY_FORMATS = ("JPEG", "MPO")
STRETCHED_RAW_MODES = ("L;2", "L;4")
# Several stages resize the short side to a given length, so memory grows with the square of the long side: at 16, class
# token attention takes about 3 GB with the embedded ViT at the folder profile's size.
MAX_ASPECT = 16


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


def image_size_problem(width: int, height: int, max_pixels: int | None = None) -> str | None:
    """Say why an image of this size costs too much time or memory; None if it does not."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"{width}x{height} pixels: the long side is more than {MAX_ASPECT} times the short side; crop the image"
    if max_pixels is not None and width * height > max_pixels:
        return (
            f"{width}x{height} pixels, more than max_pixels = {max_pixels} of the profile in params.yaml; resize the "
            "image and its mask, or raise max_pixels: time grows with the square of the pixels"
        )
    return None


def read_size(path: Path) -> tuple[int, int]:
    """Return width and height as the file's header has them: before EXIF orientation, without decoding pixels."""
    with _open(path) as image:
        return image.size


def read_image(path: Path) -> Image.Image:
    """Return an upright RGB image (EXIF orientation applied), without transparency; the first of several frames.

    Raises `OSError` if it is missing or truncated, and `ValueError` if its pixels have more than 8 bits per channel.
    """
    with _open(path) as image:
        if image.mode.startswith(WIDE_MODES):
            # Pillow would clip them at 255. Their range is unknown: 16 bits often hold 10 or 12, floats 0 to 1.
            raise ValueError(f"pixels of more than 8 bits (mode {image.mode}); convert the image to 8 bits per channel")
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # Pillow warns of a palette with transparency that becomes RGB
        return upright.convert("RGB")


def read_mask(path: Path) -> np.ndarray:
    """Return the class indices `(H, W)` uint8 of a palette or gray mask.

    Raises `OSError` if it is missing or truncated, and `ValueError` if its pixels are not class indices.
    """
    with _open(path) as mask:
        if mask.mode not in MASK_MODES:
            raise ValueError(f"a mask of mode {mask.mode}; expected palette (P) or gray (L) class indices")
        if mask.format in LOSSY_FORMATS:
            raise ValueError(f"a mask in {mask.format} format, which changes class indices; save masks as PNG")
        if _raw_mode(mask) in STRETCHED_RAW_MODES:
            raise ValueError("a gray mask of 2 or 4 bits, whose values Pillow stretches to 0..255; save it with 8 bits")
        return np.asarray(mask).astype(np.uint8)


def _open(path: Path) -> Image.Image:
    require_regular_file(path)
    return Image.open(path, formats=IMAGE_FORMATS)


def _raw_mode(image: Image.Image) -> object:
    """Return how pixels are stored in the file, as Pillow's decoders name it; it differs from the mode of the image."""
    args = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
    return args[0] if isinstance(args, tuple) else args
