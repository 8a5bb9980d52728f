"""Views of an image: the geometry of a crop, which is applied to the image and to its mask."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stages.data.voc import VOID


@dataclass(frozen=True)
class View:
    """Resize, then crop at (`top`, `left`), then flip left to right. All lengths are in pixels.

    Where the crop extends beyond the resized image it is padded: images with 0, masks with 255.
    """

    resize_height: int
    resize_width: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    flip: bool


def native_view(height: int, width: int) -> View:
    """Return the view that changes nothing."""
    return View(height, width, 0, 0, height, width, False)


def random_view(rng: np.random.Generator, height: int, width: int, short_side: tuple[int, int], crop: int) -> View:
    """Draw a training view of an image of `height` x `width` pixels.

    The short side is resized to a random length of the range `short_side` (ends included), followed by a random
    square crop of side `crop` and a flip with probability 0.5. The order of the draws determines the view.
    """
    scale = rng.integers(short_side[0], short_side[1] + 1) / min(height, width)
    resize_height = max(1, round(height * scale))
    resize_width = max(1, round(width * scale))
    top = int(rng.integers(0, max(0, resize_height - crop) + 1))
    left = int(rng.integers(0, max(0, resize_width - crop) + 1))
    flip = bool(rng.random() < 0.5)
    return View(resize_height, resize_width, top, left, crop, crop, flip)


def crop_image(image: Image.Image, view: View) -> np.ndarray:
    """Apply a view to an image: `(crop_height, crop_width, 3)` uint8, resized bilinearly with antialiasing."""
    return _apply(view, image, Image.Resampling.BILINEAR, fill=(0, 0, 0))


def crop_mask(mask: np.ndarray, view: View) -> np.ndarray:
    """Apply a view to class indices: `(crop_height, crop_width)` uint8, resized to the nearest pixel."""
    return _apply(view, Image.fromarray(mask), Image.Resampling.NEAREST, fill=VOID)


def _apply(
    view: View, image: Image.Image, resampling: Image.Resampling, fill: int | tuple[int, int, int]
) -> np.ndarray:
    size = (view.resize_width, view.resize_height)
    if image.size != size:
        image = image.resize(size, resampling)
    if size != (view.crop_width, view.crop_height):
        canvas = Image.new(image.mode, (view.crop_width, view.crop_height), fill)
        canvas.paste(image, (-view.left, -view.top))
        image = canvas
    pixels = np.asarray(image)
    if view.flip:
        pixels = pixels[:, ::-1]
    return np.array(pixels, order="C")  # a copy, as Pillow's memory is read-only
