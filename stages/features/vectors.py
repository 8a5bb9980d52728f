"""Vector tables in parquet: one row per image view or caption, small enough to be read whole.

The column `vector` is `fixed_size_binary(2 * dim)`, float16. The schema metadata says what the vectors were computed
from; readers refuse a table whose metadata differs from what they expect.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.core.atomic import atomic_write
from stages.core.finite import is_finite
from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.features.finite import check_finite
from stages.features.parquet import READ_OPTIONS, WRITE_OPTIONS, reading_errors


@dataclass(frozen=True)
class Vectors:
    """`values` `(N, dim)` float16; row `i` belongs to image `image_ids[i]` and its view or caption `indices[i]`."""

    image_ids: list[str]
    indices: list[int]
    values: Tensor
    metadata: dict[str, str]


def write_vectors(path: Path, vectors: Vectors) -> None:
    """Write a table as float16, atomically. Raises `InputError` if a value is not finite in float16."""
    half_values = vectors.values.detach().cpu().half().contiguous()
    if not is_finite(half_values):
        _refuse(vectors, half_values)
    values = half_values.numpy()
    vector_type = pa.binary(values.itemsize * values.shape[1])
    schema = pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("index", pa.int16(), nullable=False),
            pa.field("vector", vector_type, nullable=False),
        ],
        metadata=vectors.metadata,
    )
    packed = pa.FixedSizeBinaryArray.from_buffers(vector_type, len(values), [None, pa.py_buffer(values)])
    table = pa.table([pa.array(vectors.image_ids), pa.array(vectors.indices, pa.int16()), packed], schema=schema)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, **WRITE_OPTIONS)


def _refuse(vectors: Vectors, half_values: Tensor) -> None:
    """Raise `InputError` naming the model and the first image or caption whose vector is not finite."""
    row = int(half_values.isfinite().all(1).logical_not().nonzero()[0])
    content = f"vector {vectors.indices[row]} of image {quote_value(vectors.image_ids[row])}"
    metadata = vectors.metadata
    check_finite(half_values[row], metadata.get("backbone", "unknown"), content, metadata.get("precision"))


def concat_vectors(paths: list[Path]) -> Vectors:
    """Read tables of equal metadata and return them as one."""
    tables = [read_vectors(path) for path in paths]
    return Vectors(
        image_ids=[image_id for table in tables for image_id in table.image_ids],
        indices=[index for table in tables for index in table.indices],
        values=torch.cat([table.values for table in tables]),
        metadata=tables[0].metadata,
    )


def read_vectors(path: Path, **expect: str) -> Vectors:
    """Read a table; raises `InputError` if its metadata differs from `expect` or the file is damaged."""
    with reading_errors(path):
        table = pq.read_table(path, **READ_OPTIONS)
        packed = table.column("vector").combine_chunks()
        image_ids = table.column("image_id").to_pylist()
        indices = table.column("index").to_pylist()
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for key, expected in expect.items():
        if metadata.get(key) != expected:
            raise InputError(f"{path}: {key} is {metadata.get(key)!r}, expected {expected!r}; run `dvc repro`")
    dim = packed.type.byte_width // 2  # two bytes per float16
    values = np.frombuffer(packed.buffers()[1], np.float16).reshape(-1, dim)
    values = values[packed.offset :][: len(packed)].copy()  # Arrow's memory is read-only
    return Vectors(image_ids, indices, torch.from_numpy(values), metadata)
