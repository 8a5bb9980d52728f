"""What runs predicted for the validation images, as their stages have written it."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

MASKS_PER_BATCH = 32


def read_masks(path: Path, image_ids: list[str] | None = None) -> dict[str, np.ndarray]:
    """Predicted masks `(H, W)` uint8 by image ID, of all images or of those in `image_ids`."""
    filters = None if image_ids is None else [("image_id", "in", image_ids)]
    return {
        row["image_id"]: np.frombuffer(row["mask"], np.uint8).reshape(row["height"], row["width"])
        for row in pq.read_table(path, filters=filters).to_pylist()
    }


def iterate_masks(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Image ID and predicted mask `(H, W)` uint8 of all images, in the file's order; a few are in memory at a time."""
    for batch in pq.ParquetFile(path).iter_batches(MASKS_PER_BATCH):
        for row in batch.to_pylist():
            yield row["image_id"], np.frombuffer(row["mask"], np.uint8).reshape(row["height"], row["width"])


@cache  # all cells and seeds are in one file
def read_captions(path: Path) -> dict[tuple[str, int | None], dict[str, tuple[str, str]]]:
    """Caption and reference by image ID, for every cell and seed."""
    captions: dict[tuple[str, int | None], dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in pq.read_table(path, columns=["cell", "seed", "image_id", "caption", "reference"]).to_pylist():
        captions[row["cell"], row["seed"]][row["image_id"]] = (row["caption"], row["reference"])
    return dict(captions)


def read_rows(path: Path, image_ids: list[str] | None = None) -> list[dict[str, Any]]:
    """One row per validation image, in the manifest's order: ranks of retrieval, or labels of classification.

    Of all images, or of those in `image_ids`.
    """
    filters = None if image_ids is None else [("image_id", "in", image_ids)]
    return pq.read_table(path, filters=filters).to_pylist()


def read_columns(path: Path, *names: str) -> list[list[Any]]:
    """Columns of the table of `read_rows`."""
    table = pq.read_table(path, columns=list(names))
    return [table.column(name).to_pylist() for name in names]
