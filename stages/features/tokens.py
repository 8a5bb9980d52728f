"""Feature tables: patch tokens of image views in parquet, written as a stream and read without a copy.

A table is a folder of shards, each written atomically, with one row per view. The column `tokens` is a list of
`fixed_size_binary(2 * dim)` with one entry per patch token in row-major order, so images of any size share a table
without padding. The values of a row group are contiguous in the file. The schema metadata holds `FeatureMetadata`;
readers refuse a table whose metadata differs from what they expect.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.core.atomic import atomic_write
from stages.core.stage import InputError
from stages.data.views import View
from stages.features.batching import batch_by_key

GROUP = 32  # views in a row group, the unit of reading


@dataclass(frozen=True)
class FeatureMetadata:
    """The origin of a table's tokens: model, views and precision."""

    backbone: str
    weights: str  # SHA-256 of the backbone's weights
    transform: str  # how a view was cut and normalized
    dim: int
    heads: int  # attention heads of the backbone
    patch: str  # "rows x columns" of pixels per token
    manifest: str  # SHA-256 of the manifest
    precision: str = "float32"  # of the backbone's matrix products
    dtype: str = "float16"

    def as_text(self) -> dict[str, str]:
        """Return the fields as strings, as parquet stores schema metadata."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ViewFeatures:
    """The tokens of one view, `(rows, columns, dim)` float16, and how the view was cut."""

    image_id: str
    view_index: int
    view: View
    tokens: Tensor


_VIEW_TYPES = {field.name: pa.bool_() if field.type is bool else pa.int32() for field in fields(View)}


def _schema(metadata: FeatureMetadata) -> pa.Schema:
    token = pa.field("token", pa.binary(2 * metadata.dim), nullable=False, metadata={"shape": str(metadata.dim)})
    columns = [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
        pa.field("grid_rows", pa.int16(), nullable=False),
        pa.field("grid_columns", pa.int16(), nullable=False),
        *(pa.field(name, dtype, nullable=False) for name, dtype in _VIEW_TYPES.items()),
        pa.field("tokens", pa.list_(token), nullable=False),
    ]
    return pa.schema(columns, metadata=metadata.as_text())


class FeatureWriter:
    """Collects views and writes them as row groups; all views of a group have one view index."""

    def __init__(self, writer: pq.ParquetWriter):
        self._writer = writer
        self._rows: list[ViewFeatures] = []

    def add(self, features: ViewFeatures) -> None:
        """Add one view; its tokens are stored as float16."""
        # `FeatureTable.groups_for_view` reads one view index without touching the others.
        if self._rows and self._rows[0].view_index != features.view_index:
            self.flush()
        self._rows.append(features)
        if len(self._rows) == GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the collected views as one row group."""
        if self._rows:
            self._writer.write_table(_arrow_table(self._rows, self._writer.schema), row_group_size=GROUP)
            self._rows = []


def _arrow_table(rows: list[ViewFeatures], schema: pa.Schema) -> pa.Table:
    token_arrays = [row.tokens.to("cpu", torch.float16).flatten(0, 1).contiguous().numpy() for row in rows]
    tokens = np.concatenate(token_arrays)  # (tokens of all rows, dim)
    offsets = np.cumsum([0, *(len(array) for array in token_arrays)]).astype(np.int32)
    list_type = schema.field("tokens").type
    values = pa.FixedSizeBinaryArray.from_buffers(list_type.value_type, len(tokens), [None, pa.py_buffer(tokens)])
    columns = {
        "image_id": pa.array([row.image_id for row in rows]),
        "view": pa.array([row.view_index for row in rows], pa.int16()),
        "grid_rows": pa.array([row.tokens.shape[0] for row in rows], pa.int16()),
        "grid_columns": pa.array([row.tokens.shape[1] for row in rows], pa.int16()),
        **{name: pa.array([getattr(row.view, name) for row in rows], dtype) for name, dtype in _VIEW_TYPES.items()},
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), values, type=list_type),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


@contextmanager
def open_feature_writer(path: Path, metadata: FeatureMetadata) -> Iterator[FeatureWriter]:
    """Write one shard to `path`, atomically."""
    # Plain encoding without compression: a reader uses the file's bytes as tokens, without a copy.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, _schema(metadata), **options) as parquet:
        writer = FeatureWriter(parquet)
        yield writer
        writer.flush()


class FeatureTable:
    """Reads a folder of shards by row group. Groups are numbered across shards.

    `expect` holds required values of `FeatureMetadata` fields. Raises `InputError` if one differs, if shards disagree
    or if there are none.
    """

    def __init__(self, path: Path, **expect: object):
        self.path = path
        self._files = [pq.ParquetFile(shard, memory_map=True) for shard in sorted(path.glob("*.parquet"))]
        if not self._files:
            raise InputError(f"{path}: no features here; run `dvc repro`")
        distinct = {_read_metadata(file) for file in self._files}
        if len(distinct) > 1:
            raise InputError(f"{path}: shards were extracted with different settings; run `dvc repro` to extract again")
        self.metadata = distinct.pop()
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        for key, expected in expect.items():
            value = getattr(self.metadata, key)
            if value != expected:
                raise InputError(f"{path}: {key} is {value!r}, expected {expected!r}; run `dvc repro` to extract again")

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    @property
    def num_groups(self) -> int:
        """The number of row groups."""
        return len(self._groups)

    @cached_property
    def group_views(self) -> tuple[int, ...]:
        """The view index of every row group."""
        return tuple(file.read_row_group(group, columns=["view"]).column(0)[0].as_py() for file, group in self._groups)

    @cached_property
    def smallest_grid(self) -> tuple[int, int]:
        """The minimum over all views of the grid's rows, and of its columns."""
        grids = pa.concat_tables(file.read(columns=["grid_rows", "grid_columns"]) for file in self._files)
        return pc.min(grids["grid_rows"]).as_py(), pc.min(grids["grid_columns"]).as_py()

    def groups_for_view(self, view: int) -> list[int]:
        """Return the row groups that hold a view index."""
        return [group for group, index in enumerate(self.group_views) if index == view]

    def batches(self, count: int) -> Iterator[list[ViewFeatures]]:
        """Yield all views in order, in batches of at most `count` consecutive views with one grid shape."""
        rows = (row for group in range(self.num_groups) for row in self.read_group(group))
        return batch_by_key(rows, lambda row: row.tokens.shape, lambda _: count)

    def read_group(self, index: int) -> list[ViewFeatures]:
        """Return the views of one row group; their tokens are slices of the group's memory."""
        file, group = self._groups[index]
        table = file.read_row_group(group).combine_chunks()
        token_lists = table.column("tokens").chunk(0)
        tokens = _as_tensor(token_lists.values, self.metadata.dim)
        offsets = token_lists.offsets.to_pylist()
        rows = []
        for number, row in enumerate(table.drop_columns("tokens").to_pylist()):
            grid = (row["grid_rows"], row["grid_columns"])
            view = View(**{name: row[name] for name in _VIEW_TYPES})
            view_tokens = tokens[offsets[number] : offsets[number + 1]].unflatten(0, grid)  # (rows, columns, dim)
            rows.append(ViewFeatures(row["image_id"], row["view"], view, view_tokens))
        return rows


def _read_metadata(file: pq.ParquetFile) -> FeatureMetadata:
    text = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    values: dict[str, Any] = {field.name: text[field.name] for field in fields(FeatureMetadata)}
    return FeatureMetadata(**values | {"dim": int(values["dim"]), "heads": int(values["heads"])})


def _as_tensor(values: pa.FixedSizeBinaryArray, dim: int) -> Tensor:
    """Return `(tokens, dim)` float16 that shares Arrow's memory. Do not write to it."""
    # The same buffer under another type: one binary value of 2 * dim bytes is dim float16 values.
    floats = pa.Array.from_buffers(
        pa.float16(), len(values) * dim, [None, values.buffers()[1]], offset=values.offset * dim
    )
    return torch.from_dlpack(floats).unflatten(0, (-1, dim))
