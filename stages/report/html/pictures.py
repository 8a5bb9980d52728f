"""Images as data URIs, small enough for one file."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.data.images import read_image
from stages.data.manifest import Row
from stages.data.voc import VOID
from stages.segmentation.class_colors import class_colors

SIDE = 160  # pixels of the longer side, at most, of a browsed image: twice that of a generated scene
PHOTO_QUALITY = 80
FIGURE_QUALITY = 90  # figures contain text
# More colors than this: a figure with photographs, for which lossless coding is large and slow. Charts have hundreds.
CHART_COLORS = 4096
MUCH_SMALLER = 0.8  # a figure is recoded only if it shrinks to this share
CSS_DPI = 96
VOID_COLOR = "#ffffff"


@dataclass(frozen=True)
class Figure:
    """A figure's data URI, its size in pixels, and its width on the page in CSS pixels, if the page is wide enough."""

    source: str
    width: int
    height: int
    page_width: int


def embed_figure(path: Path) -> Figure:
    """A figure (PNG), as WebP if that is much smaller."""
    png = path.read_bytes()
    with Image.open(path) as file:
        dpi, _ = file.info.get("dpi", (CSS_DPI, CSS_DPI))
    image = read_image(path)
    is_chart = image.getcolors(CHART_COLORS) is not None
    webp = _encode(image, "WEBP", lossless=True) if is_chart else _encode(image, "WEBP", quality=FIGURE_QUALITY)
    is_smaller = len(webp) <= MUCH_SMALLER * len(png)
    source = _data_uri("image/webp", webp) if is_smaller else _data_uri("image/png", png)
    return Figure(source, image.width, image.height, round(image.width * CSS_DPI / dpi))


def embed_image(row: Row) -> str:
    """The data URI of an image, its longer side at most `SIDE`."""
    image = read_image(Path(row.image))
    image.thumbnail((SIDE, SIDE))
    return _data_uri("image/webp", _encode(image, "WEBP", quality=PHOTO_QUALITY))


def embed_mask(mask: np.ndarray, palette: bytes) -> str:
    """The data URI of a mask `(H, W)` uint8 in colors of `mask_palette`, its longer side at most `SIDE`."""
    # Void becomes the index after the last class: a palette up to 255 would double the size of a small mask.
    void = len(palette) // 3 - 1
    image = Image.fromarray(np.where(mask == VOID, void, mask).astype(np.uint8), mode="P")
    image.putpalette(palette)
    image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return _data_uri("image/png", _encode(image, "PNG"))


def color_codes(classes: tuple[str, ...]) -> list[str]:
    """The colors of the classes in masks, as `#rrggbb`."""
    colors = class_colors(classes)
    return [_color_code(colors[name]) for name in classes]


def mask_palette(classes: tuple[str, ...]) -> bytes:
    """RGB of every class, then of void."""
    return b"".join(bytes.fromhex(code[1:]) for code in [*color_codes(classes), VOID_COLOR])


def _color_code(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
