"""Feature tables: patch tokens of image views in parquet, written as a stream and read without a copy.

A table is a folder of shards, each written atomically, with one row per view. The column `tokens` is a list of
`fixed_size_binary(2 * dim)` with one entry per patch token in row-major order, so images of any size share a table
without padding. The values of a row group are contiguous in the file. The schema metadata holds `FeatureMetadata`;
readers refuse a table whose metadata differs from what they expect.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.core.atomic import atomic_write
from stages.core.finite import is_finite
from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.data.views import View
from stages.features.batching import batch_by_key
from stages.features.finite import check_finite
from stages.features.parquet import READ_OPTIONS, WRITE_OPTIONS, reading_errors

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
    layers: str = "last"  # the blocks whose outputs the tokens are, as `ComparedBackbone.describe_layers` prints them

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

    def __init__(self, writer: pq.ParquetWriter, metadata: FeatureMetadata):
        self._writer = writer
        self._metadata = metadata
        self._rows: list[ViewFeatures] = []

    def add(self, features: ViewFeatures) -> None:
        """Add one view; its tokens are stored as float16. Raises `InputError`, as `flush` does."""
        # `FeatureTable.groups_for_view` reads one view index without touching the others.
        if self._rows and self._rows[0].view_index != features.view_index:
            self.flush()
        self._rows.append(features)
        if len(self._rows) == GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the collected views as one row group. Raises `InputError` if a value is not finite in float16."""
        if self._rows:
            tokens = [row.tokens.to("cpu", torch.float16).flatten(0, 1) for row in self._rows]
            group = torch.cat(tokens)  # (tokens of all rows, dim)
            if not is_finite(group):
                self._refuse(tokens)
            lengths = [len(view_tokens) for view_tokens in tokens]
            table = _arrow_table(self._rows, group.numpy(), lengths, self._writer.schema)
            self._writer.write_table(table, row_group_size=GROUP)
            self._rows = []

    def _refuse(self, tokens: list[Tensor]) -> None:
        """Raise `InputError` naming the model and the first image whose tokens are not finite."""
        for row, view_tokens in zip(self._rows, tokens, strict=True):
            content = f"features of image {quote_value(row.image_id)}"
            check_finite(view_tokens, self._metadata.backbone, content, self._metadata.precision)


def _arrow_table(rows: list[ViewFeatures], tokens: np.ndarray, lengths: list[int], schema: pa.Schema) -> pa.Table:
    """Return the rows with their `tokens` `(all tokens, dim)` float16, of which row i has `lengths[i]`."""
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
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
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, _schema(metadata), **WRITE_OPTIONS) as parquet:
        writer = FeatureWriter(parquet, metadata)
        yield writer
        writer.flush()


class FeatureTable:
    """Reads a folder of shards by row group. Groups are numbered across shards.

    `expect` holds required values of `FeatureMetadata` fields. Raises `InputError` if one differs, if shards disagree
    or if there are none. Reading a damaged shard raises `InputError` too.
    """

    def __init__(self, path: Path, **expect: object):
        self.path = path
        self._files: dict[Path, pq.ParquetFile] = {}
        distinct = set()
        for shard in sorted(path.glob("*.parquet")):
            with reading_errors(shard):
                self._files[shard] = pq.ParquetFile(shard, **READ_OPTIONS)
                distinct.add(_read_metadata(self._files[shard]))
        if not self._files:
            raise InputError(f"{path}: no features here; run `dvc repro`")
        if len(distinct) > 1:
            raise InputError(f"{path}: shards were extracted with different settings; run `dvc repro` to extract again")
        self.metadata = distinct.pop()
        self._groups = [(shard, group) for shard, file in self._files.items() for group in range(file.num_row_groups)]
        for key, expected in expect.items():
            value = getattr(self.metadata, key)
            if value != expected:
                raise InputError(f"{path}: {key} is {value!r}, expected {expected!r}; run `dvc repro` to extract again")

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files.values())

    def __reduce__(self) -> tuple[type["FeatureTable"], tuple[Path]]:
        """Pickle the path alone: another process opens the files itself."""
        return FeatureTable, (self.path,)

    @property
    def num_groups(self) -> int:
        """The number of row groups."""
        return len(self._groups)

    @cached_property
    def group_views(self) -> tuple[int, ...]:
        """The view index of every row group."""
        views = []
        for shard, group in self._groups:
            with reading_errors(shard):
                views.append(self._files[shard].read_row_group(group, columns=["view"]).column(0)[0].as_py())
        return tuple(views)

    @cached_property
    def image_ids(self) -> list[str]:
        """The image ID of every view."""
        return self._read_columns(["image_id"])["image_id"].to_pylist()

    @cached_property
    def grids(self) -> list[tuple[int, int]]:
        """The rows and columns of every view's grid."""
        grids = self._read_columns(["grid_rows", "grid_columns"])
        return list(zip(grids["grid_rows"].to_pylist(), grids["grid_columns"].to_pylist(), strict=True))

    @property
    def token_bytes(self) -> int:
        """The size of all tokens. They are not compressed: nearly the size of the files."""
        return sum(rows * columns for rows, columns in self.grids) * self.metadata.dim * torch.float16.itemsize

    @property
    def smallest_grid(self) -> tuple[int, int]:
        """The minimum over all views of the grid's rows, and of its columns."""
        rows, columns = zip(*self.grids, strict=True)
        return min(rows), min(columns)

    def _read_columns(self, columns: list[str]) -> pa.Table:
        tables = []
        for shard, file in self._files.items():
            with reading_errors(shard):
                tables.append(file.read(columns=columns))
        return pa.concat_tables(tables)

    def groups_for_view(self, view: int) -> list[int]:
        """Return the row groups that hold a view index."""
        return [group for group, index in enumerate(self.group_views) if index == view]

    def batches(self, count: int) -> Iterator[list[ViewFeatures]]:
        """Yield all views in order, in batches of at most `count` consecutive views with one grid shape."""
        rows = (row for group in range(self.num_groups) for row in self.read_group(group))
        return batch_by_key(rows, lambda row: row.tokens.shape, lambda _: count)

    @cached_property
    def _group_ends(self) -> list[int]:
        """The number of views up to the end of every row group."""
        sizes = [self._files[shard].metadata.row_group(group).num_rows for shard, group in self._groups]
        return list(accumulate(sizes))

    def read_views(self, indices: Sequence[int]) -> list[ViewFeatures]:
        """Return views by their index in the table. Ask for consecutive ones: each row group is read as a whole."""
        groups: dict[int, list[ViewFeatures]] = {}
        views = []
        for index in indices:
            group = bisect_right(self._group_ends, index)
            if group not in groups:
                groups[group] = self.read_group(group)
            views.append(groups[group][index - self._group_ends[group]])  # counted from the group's end
        return views

    def read_group(self, index: int) -> list[ViewFeatures]:
        """Return the views of one row group; their tokens are slices of the group's memory."""
        shard, group = self._groups[index]
        with reading_errors(shard):
            table = self._files[shard].read_row_group(group).combine_chunks()
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
    """Return the metadata of a shard. Raises `KeyError` or `ValueError` if it is incomplete or impossible."""
    text = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
    values: dict[str, Any] = {field.name: text[field.name] for field in fields(FeatureMetadata)}
    for key in ("dim", "heads"):
        values[key] = int(values[key])
        if values[key] < 1:
            raise ValueError(f"its metadata says {key} {values[key]}")
    metadata = FeatureMetadata(**values)
    if not file.schema_arrow.equals(_schema(metadata)):  # the schema has no checksum
        raise ValueError("its columns are not those of a token table")
    return metadata


def _as_tensor(values: pa.FixedSizeBinaryArray, dim: int) -> Tensor:
    """Return `(tokens, dim)` float16 that shares Arrow's memory. Do not write to it."""
    # The same buffer under another type: one binary value of 2 * dim bytes is dim float16 values.
    floats = pa.Array.from_buffers(
        pa.float16(), len(values) * dim, [None, values.buffers()[1]], offset=values.offset * dim
    )
    return torch.from_dlpack(floats).unflatten(0, (-1, dim))
