"""A table of vectors in parquet: one row an image view or a caption, small enough to be read whole.

`vector` is a `fixed_size_binary` of half floats, which is read without a copy. What the vectors were made with stands
in the schema metadata, and a reader that expects something else is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.core.atomic import atomic_write
from stages.core.stage import InputError


@dataclass(frozen=True)
class Vectors:
    """`values` `(N, dim)` float16; row `i` is of image `image_ids[i]`, its view or caption number `indices[i]`."""

    image_ids: list[str]
    indices: list[int]
    values: Tensor
    metadata: dict[str, str]


def write_vectors(path: Path, vectors: Vectors) -> None:
    """Write a table, whole or not at all; values become half floats."""
    values = vectors.values.detach().cpu().half().contiguous().numpy()
    kind = pa.binary(values.itemsize * values.shape[1])
    fields = [("image_id", pa.string(), False), ("index", pa.int16(), False), ("vector", kind, False)]
    schema = pa.schema([pa.field(*field) for field in fields], metadata=vectors.metadata)
    packed = pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    table = pa.table([pa.array(vectors.image_ids), pa.array(vectors.indices, pa.int16()), packed], schema=schema)
    with atomic_write(path) as beside:
        pq.write_table(table, beside, compression="none", use_dictionary=False, write_statistics=False)


def concat_vectors(paths: list[Path]) -> Vectors:
    """Tables that were made with the same, one behind the other."""
    tables = [read_vectors(path) for path in paths]
    ids, indices = ([one for table in tables for one in getattr(table, key)] for key in ("image_ids", "indices"))
    return Vectors(ids, indices, torch.cat([table.values for table in tables]), tables[0].metadata)


def read_vectors(path: Path, **expect: str) -> Vectors:
    """Read a table; raises `InputError` where it was made with anything else than `expect` says."""
    table = pq.read_table(path)
    made_with = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    for key, expected in expect.items():
        if made_with.get(key) != expected:
            raise InputError(f"{path}: {key} is {made_with.get(key)!r}, expected {expected!r}; run `dvc repro`")
    packed = table.column("vector").combine_chunks()
    values = np.frombuffer(packed.buffers()[1], np.float16).reshape(-1, packed.type.byte_width // 2)
    image_ids, indices = table.column("image_id").to_pylist(), table.column("index").to_pylist()
    return Vectors(image_ids, indices, torch.from_numpy(values[packed.offset :][: len(packed)].copy()), made_with)
