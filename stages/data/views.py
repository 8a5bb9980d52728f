"""How a view is cut from an image, written down so that its mask can be cut alike."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stages.data.voc import VOID


@dataclass(frozen=True)
class View:
    """Resized to `resize`, cropped to `crop` at (`top`, `left`), then flipped left to right. All in pixels.

    Where the crop reaches beyond the resized image it is padded: pixels with 0, labels with 255.
    """

    resize_height: int
    resize_width: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    flip: bool


def native_view(height: int, width: int) -> View:
    """The image as it is."""
    return View(height, width, 0, 0, height, width, False)


def random_view(rng: np.random.Generator, height: int, width: int, short_side: tuple[int, int], crop: int) -> View:
    """A training view: short side resized to a random length (ends included), random square crop, flip with p 0.5."""
    scale = rng.integers(short_side[0], short_side[1] + 1) / min(height, width)
    resized = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (int(rng.integers(0, max(0, length - crop) + 1)) for length in resized)
    return View(*resized, top, left, crop, crop, bool(rng.random() < 0.5))


def crop_image(image: Image.Image, view: View) -> np.ndarray:
    """`(crop_height, crop_width, 3)` uint8, resized bilinearly with antialiasing."""
    return _cut(image, view, Image.Resampling.BILINEAR, fill=(0, 0, 0))


def crop_mask(mask: np.ndarray, view: View) -> np.ndarray:
    """`(crop_height, crop_width)` uint8 of class indices, resized to the nearest."""
    return _cut(Image.fromarray(mask), view, Image.Resampling.NEAREST, fill=VOID)


def _cut(picture: Image.Image, view: View, resampling: Image.Resampling, fill) -> np.ndarray:
    size = (view.resize_width, view.resize_height)
    if picture.size != size:
        picture = picture.resize(size, resampling)
    if size != (view.crop_width, view.crop_height):
        canvas = Image.new(picture.mode, (view.crop_width, view.crop_height), fill)
        canvas.paste(picture, (-view.left, -view.top))
        picture = canvas
    pixels = np.asarray(picture)
    return np.array(pixels[:, ::-1] if view.flip else pixels, order="C")  # a copy: Pillow's own memory is read-only
