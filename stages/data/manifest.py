"""The manifest: one row an image, the same for every source, validated before it is written."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from stages.core.atomic import atomic_write
from stages.core.stage import InputError
from stages.data.images import read_image, read_mask
from stages.data.voc import VOID

MANIFEST = Path("data/manifest.parquet")
LABELED = Path("data/labeled.parquet")  # the images that classifiers are fine-tuned on
SPLITS = ("train", "val")
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on bad files

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
    """One image. `validate` fills in `height` and `width` (pixels, upright) and `content`.

    `content` is the SHA-256 of the image's and the mask's bytes: a redrawn mask makes another manifest.
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
    """Rows, with what is known of them all: names of mask classes, names of labels, license, source."""

    rows: tuple[Row, ...]
    source: str
    classes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    license: str = "unknown"

    def split(self, name: str) -> tuple[Row, ...]:
        """The rows of one split, in the source's order."""
        return tuple(row for row in self.rows if row.split == name)


def evenly_spaced(rows: tuple[Row, ...], count: int) -> tuple[Row, ...]:
    """Images spread evenly over a split."""
    return tuple(rows[index] for index in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))


@dataclass
class Problems:
    """What is wrong with a source, gathered in one pass."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: object, reason: object) -> None:
        self.lines.append(f"{where}: {reason}")

    def raise_if_any(self, source: str) -> None:
        """Raise `InputError` with a line a fault, if there is one."""
        if self.lines:
            count = f"{len(self.lines)} fault{'s' if len(self.lines) > 1 else ''}"
            raise InputError("\n  ".join([f"{source}: {count}, nothing written", *self.lines]))


def read_text_file(path: Path, faults: Problems) -> str:
    """The text of a file; "" with a fault added where it is no UTF-8 (a byte order mark is fine)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        faults.add(path, f"no UTF-8: {fault.reason} at byte {fault.start}")
        return ""


def validate_manifest(manifest: Manifest, faults: Problems | None = None) -> Manifest:
    """Look at every file once; return the manifest with image sizes, or raise `InputError` listing all faults.

    `faults` holds what reading the source has found already. Where the source names no classes, they are numbered
    from the masks' values; images without masks have none.
    """
    faults = faults or Problems()
    for image_id, count in Counter(row.image_id for row in manifest.rows).items():
        if count > 1:
            faults.add(image_id, f"duplicate id, listed {count} times")
    for split in SPLITS:
        if not manifest.split(split):
            faults.add(split, "empty split")
    with ThreadPoolExecutor() as pool:
        looks = pool.map(_look, manifest.rows)
        looks = list(tqdm(looks, "check images", len(manifest.rows), unit="image", mininterval=1))
    for look in looks:
        faults.lines.extend(look.faults)
    classes = manifest.classes or _numbered(looks)
    for name, count in Counter(classes).items():
        if count > 1:
            faults.add(manifest.source, f"class name '{name}' stands {count} times")
    if any(row.mask for row in manifest.rows) and len(classes) < 2:
        faults.add(manifest.source, f"masks hold {len(classes)} class; at least 2 are needed beside {VOID} (void)")
    for look in looks:
        beyond = [value for value in look.values if value >= len(classes) and value != VOID]
        if beyond:
            allowed = f"0..{len(classes) - 1} and {VOID} (void)"
            faults.add(look.row.mask, f"mask value {beyond} out of range; allowed {allowed}")
    faults.raise_if_any(manifest.source)
    return replace(manifest, rows=tuple(look.row for look in looks), classes=classes)


@dataclass(frozen=True)
class _Look:
    row: Row
    values: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()


def _look(row: Row) -> _Look:
    """Decode an image and its mask in full: size, mask values, faults."""
    faults, values = [], ()
    try:
        width, height = read_image(Path(row.image)).size
        row = replace(row, height=height, width=width, content=_content(row))
    except IMAGE_ERRORS as fault:
        faults.append(f"{row.image}: {_reason(fault)}")
    if row.mask is not None:
        try:
            mask = read_mask(Path(row.mask))
            values = tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())
            if row.height and mask.shape != (row.height, row.width):
                faults.append(
                    f"{row.mask}: mask is {mask.shape[1]}x{mask.shape[0]}, its image {row.width}x{row.height} pixels"
                )
        except IMAGE_ERRORS as fault:
            faults.append(f"{row.mask}: {_reason(fault)}")
    return _Look(row, values, tuple(faults))


def _content(row: Row) -> str:
    files = [Path(name) for name in (row.image, row.mask) if name is not None and Path(name).is_file()]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _reason(fault: Exception) -> str:
    if isinstance(fault, FileNotFoundError):
        return "missing"
    return "not a readable image" if "cannot identify" in str(fault) else str(fault)


def _numbered(looks: Iterable[_Look]) -> tuple[str, ...]:
    values = {value for look in looks for value in look.values if value != VOID}
    return tuple(f"class {index}" for index in range(max(values, default=-1) + 1))


def write_manifest(manifest: Manifest, path: Path = MANIFEST) -> None:
    """Write a validated manifest."""
    facts = {
        "source": manifest.source,
        "classes": json.dumps(manifest.classes),
        "labels": json.dumps(manifest.labels),
        "license": manifest.license,
    }
    table = pa.Table.from_pylist([asdict(row) for row in manifest.rows], schema=SCHEMA.with_metadata(facts))
    with atomic_write(path) as beside:
        pq.write_table(table, beside)


def manifest_hash(path: Path = MANIFEST) -> str:
    """SHA-256 of a manifest on disk: what is made from it is bound to it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(path: Path = MANIFEST) -> Manifest:
    """Read a manifest of `write`. Raises `OSError` where there is none."""
    table = pq.read_table(path)
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    rows = tuple(Row(**{**row, "captions": tuple(row["captions"])}) for row in table.to_pylist())
    classes, labels = (tuple(json.loads(facts[key])) for key in ("classes", "labels"))
    return Manifest(rows, facts["source"], classes, labels, facts["license"])
