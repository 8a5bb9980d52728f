"""The manifest: one row per image, the same for every data source, validated before it is written."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from stages.core.atomic import atomic_write
from stages.core.hashes import file_sha256
from stages.core.messages import escape_controls, quote_value
from stages.core.stage import InputError
from stages.data.files import require_regular_file
from stages.data.image_ids import has_control_characters
from stages.data.images import IMAGE_FORMATS, image_size_problem, read_image, read_mask, read_size
from stages.data.voc import VOID

# Outputs of the `data` stage.
MANIFEST = Path("data/manifest.parquet")
LABELED = Path("data/labeled.parquet")  # the images that classifiers are fine-tuned on
SCENES = Path("data/scenes")  # files of the source of MANIFEST, if it writes any
OBJECTS = Path("data/objects")  # files of the source of LABELED, if it writes any

SPLITS = ("train", "val")
MAX_CLASSES = 254  # masks and predictions are uint8
MAX_NAME_LENGTH = 100  # characters of a class or label
EMPTY_NAME = "an empty name"
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # raised by Pillow for bad files

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Row:
    """One image. `mask` is the path of a mask of class indices, `label` an index into `Manifest.labels`.

    `validate_manifest` fills in `height` and `width` (pixels, upright) and `content`, the SHA-256 of the image's and
    the mask's bytes: it makes the manifest, and all that is computed from it, depend on their pixels.
    """

    image_id: str
    split: str
    image: str
    mask: str | None = None
    captions: tuple[str, ...] = ()
    label: int | None = None
    height: int = 0
    width: int = 0
    content: str = ""


@dataclass(frozen=True)
class Manifest:
    """Rows, and what they share: the source, names of mask values (`classes`) and of labels, the license."""

    rows: tuple[Row, ...]
    source: str
    classes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    license: str = "unknown"

    def split(self, name: str) -> tuple[Row, ...]:
        """Return the rows of a split, in the source's order."""
        return tuple(row for row in self.rows if row.split == name)

    @property
    def has_masks(self) -> bool:
        """Whether every image has a mask."""
        return all(row.mask for row in self.rows)


def evenly_spaced(rows: tuple[Row, ...], count: int) -> tuple[Row, ...]:
    """Return at most `count` rows, spaced evenly from the first to the last."""
    indices = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return tuple(rows[index] for index in indices)


@dataclass
class Problems:
    """Problems of an input, collected so that users see all of them at once."""

    lines: list[str] = field(default_factory=list)

    def add(self, location: object, reason: object) -> None:
        self.lines.append(escape_controls(f"{location}: {reason}"))

    def raise_if_any(self, source: str) -> None:
        """Raise `InputError` with one line per problem, if there are any."""
        if self.lines:
            count = f"{len(self.lines)} problem{'s' if len(self.lines) > 1 else ''}"
            heading = f"{source}: {count}. All problems are listed; nothing is written until you fix them."
            raise InputError("\n  ".join([heading, *self.lines]))


def read_text_file(path: Path, problems: Problems) -> str:
    """Return the text of a UTF-8 file, without its byte order mark if any; "" and a problem if it cannot be read.

    Lines end in a newline, whatever the file's line ends are.
    """
    try:
        require_regular_file(path)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(path, f"not UTF-8 text: {error.reason} at byte {error.start}")
    except OSError as error:
        problems.add(path, error.strerror or error)
    return ""


def name_problem(name: str) -> str | None:
    """Say why a class or label cannot have this name; None if it can. It is printed in tables and figures."""
    if not name:
        return EMPTY_NAME
    if len(name) > MAX_NAME_LENGTH:
        return f"a name of {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed"
    return "a name with control characters" if has_control_characters(name) else None


@dataclass(frozen=True)
class ImageCheck:
    """Result of reading an image and its mask: the completed row, the mask's values, and problems."""

    row: Row
    mask_values: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def validate_manifest(manifest: Manifest, problems: Problems | None = None, max_pixels: int | None = None) -> Manifest:
    """Read every image and mask once; return the manifest with sizes, content hashes and class names.

    If the source names no classes, they are numbered from the masks' values. `problems` are those met while the source
    was read. Images of more than `max_pixels` are refused. Raises `InputError` listing all problems.
    """
    problems = problems or Problems()
    for image_id, count in Counter(row.image_id for row in manifest.rows).items():
        if count > 1:
            problems.add(image_id, f"duplicate image ID, listed {count} times")
    for split in SPLITS:
        if not manifest.split(split):
            problems.add(split, "empty split")
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
        results = pool.map(partial(_check_image, max_pixels=max_pixels), manifest.rows)
        checks = list(tqdm(results, "check images", len(manifest.rows), unit="image", mininterval=1))
    for check in checks:
        problems.lines.extend(check.problems)
    classes = manifest.classes or _numbered_classes(checks)
    if len(classes) > MAX_CLASSES:
        problems.add(manifest.source, f"{len(classes)} classes; at most {MAX_CLASSES} fit into masks, {VOID} is void")
    for name, count in Counter(classes).items():
        if count > 1:
            problems.add(manifest.source, f"class name {quote_value(name)} is listed {count} times")
    if any(row.mask for row in manifest.rows) and len(classes) < 2:
        # Masks of 0 and 255 are common, but 255 is void here: every score would be 100 %.
        problems.add(manifest.source, f"masks hold {len(classes)} class; at least 2 are needed besides {VOID} (void)")
    for check in checks:
        invalid = [value for value in check.mask_values if value >= len(classes) and value != VOID]
        if invalid:
            allowed = f"0..{len(classes) - 1} and {VOID} (void)"
            problems.add(check.row.mask, f"mask value {invalid} out of range; allowed {allowed}")
    _check_void(checks, problems)
    problems.raise_if_any(manifest.source)
    return replace(manifest, rows=tuple(check.row for check in checks), classes=classes)


def _check_void(checks: Sequence[ImageCheck], problems: Problems) -> None:
    """Add a problem for every split without a mask pixel to train on or to measure."""
    for split in SPLITS:
        mask_values = [check.mask_values for check in checks if check.row.split == split and check.mask_values]
        if mask_values and all(values == (VOID,) for values in mask_values):
            problems.add(split, f"all masks of this split hold {VOID} (void) only; at least one needs a class")


def _check_image(row: Row, max_pixels: int | None) -> ImageCheck:
    """Decode an image and its mask in full, which finds truncated files too."""
    problems = Problems()
    values: tuple[int, ...] = ()
    try:
        # Before the pixels are decoded: a small file may have billions.
        size_problem = image_size_problem(*read_size(Path(row.image)), max_pixels)
        if size_problem:
            problems.add(row.image, size_problem)
            return ImageCheck(row, values, tuple(problems.lines))
        width, height = read_image(Path(row.image)).size
        row = replace(row, height=height, width=width, content=_content_hash(row))
    except IMAGE_ERRORS as error:
        problems.add(row.image, image_problem(error))
    if row.mask is not None:
        try:
            mask = read_mask(Path(row.mask))
            values = tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())
            if row.height and mask.shape != (row.height, row.width):
                mask_size = f"{mask.shape[1]}x{mask.shape[0]}"
                problems.add(row.mask, f"mask is {mask_size}, its image {row.width}x{row.height} pixels")
        except IMAGE_ERRORS as error:
            problems.add(row.mask, image_problem(error))
    return ImageCheck(row, values, tuple(problems.lines))


def _content_hash(row: Row) -> str:
    files = [Path(path) for path in (row.image, row.mask) if path is not None and Path(path).is_file()]
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def image_problem(error: Exception) -> str:
    """Say in a few words why an image cannot be read, given one of `IMAGE_ERRORS`."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow's own message repeats the path, with the Python object that it was given.
    return f"not a readable image ({', '.join(IMAGE_FORMATS)})" if "cannot identify" in str(error) else str(error)


def read_user_image(path: Path) -> Image.Image:
    """The image of a file that a user names. Raises `InputError` if it cannot be read, or is too long and narrow."""
    try:
        problem = image_size_problem(*read_size(path))
        if problem:
            raise InputError(f"{path}: {problem}")
        return read_image(path)
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: {image_problem(error)}") from error


def _numbered_classes(checks: Iterable[ImageCheck]) -> tuple[str, ...]:
    values = {value for check in checks for value in check.mask_values if value != VOID}
    return tuple(f"class {index}" for index in range(max(values, default=-1) + 1))


def write_manifest(manifest: Manifest, path: Path = MANIFEST) -> None:
    """Write a validated manifest as parquet: rows as columns, the rest as schema metadata."""
    metadata = {
        "source": manifest.source,
        "classes": json.dumps(manifest.classes),
        "labels": json.dumps(manifest.labels),
        "license": manifest.license,
    }
    # By column: of 100,000 rows with five captions, a dict for each would take three times as long and 50 MB more.
    columns = [
        pa.array([getattr(row, name) for row in manifest.rows], SCHEMA.field(name).type) for name in SCHEMA.names
    ]
    table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def manifest_hash(path: Path = MANIFEST) -> str:
    """Return the SHA-256 of a manifest file. Cached features record it, to detect another manifest."""
    return file_sha256(path)


def read_manifest(path: Path = MANIFEST) -> Manifest:
    """Read a manifest that `write_manifest` wrote. Raises `OSError` if it is missing."""
    table = pq.read_table(path)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    rows = tuple(Row(**{**row, "captions": tuple(row["captions"])}) for row in table.to_pylist())
    classes = tuple(json.loads(metadata["classes"]))
    labels = tuple(json.loads(metadata["labels"]))
    return Manifest(rows, metadata["source"], classes, labels, metadata["license"])
