"""The feature table: patch tokens of image views in parquet, streamed in, handed out without a copy.

A table is a folder of shards, each a file that is there whole or not at all. One row a view. `tokens` is a list of
`fixed_size_binary(2 * dim)`, one entry a patch token in row-major order, so that images of any size share a table
without padding; their bytes lie side by side in the file. What the tokens were made with stands in the schema metadata,
and a reader that expects something else is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

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

GROUP = 32  # views in a row group: what is read at once


@dataclass(frozen=True)
class FeatureMetadata:
    """What a table's tokens were made with."""

    backbone: str
    weights: str  # SHA-256 of the backbone's weights
    transform: str  # how a view was cut, and normalized
    dim: int
    heads: int  # attention heads of the backbone
    patch: str  # "rows x columns" of pixels behind one token
    manifest: str  # SHA-256 of the manifest
    precision: str = "float32"  # of the backbone's products
    dtype: str = "float16"


@dataclass(frozen=True)
class ViewFeatures:
    """The tokens of one view, `(rows, columns, dim)` float16, and how it was cut."""

    image_id: str
    view_index: int
    view: View
    tokens: Tensor


_VIEW_TYPES = {field.name: pa.bool_() if field.type is bool else pa.int32() for field in fields(View)}


def _schema(provenance: FeatureMetadata) -> pa.Schema:
    metadata = {key: str(value) for key, value in asdict(provenance).items()}
    token = pa.field("token", pa.binary(2 * provenance.dim), nullable=False, metadata={"shape": str(provenance.dim)})
    columns = [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
        pa.field("grid_rows", pa.int16(), nullable=False),
        pa.field("grid_columns", pa.int16(), nullable=False),
        *(pa.field(name, kind, nullable=False) for name, kind in _VIEW_TYPES.items()),
        pa.field("tokens", pa.list_(token), nullable=False),
    ]
    return pa.schema(columns, metadata=metadata)


class FeatureWriter:
    """Takes views one by one and writes full row groups; a group never mixes view indices."""

    def __init__(self, writer: pq.ParquetWriter):
        self._writer = writer
        self._waiting: list[ViewFeatures] = []

    def add(self, features: ViewFeatures) -> None:
        """Queue one view; tokens are stored as half floats, whatever they came as."""
        if self._waiting and self._waiting[0].view_index != features.view_index:
            self.flush()
        self._waiting.append(features)
        if len(self._waiting) == GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        if self._waiting:
            self._writer.write_table(_table(self._waiting, self._writer.schema), row_group_size=GROUP)
            self._waiting = []


def _table(rows: list[ViewFeatures], schema: pa.Schema) -> pa.Table:
    flat = [row.tokens.to("cpu", torch.float16).flatten(0, 1).contiguous() for row in rows]
    tokens = np.concatenate([one.numpy() for one in flat])  # (tokens of all rows, dim)
    offsets = np.cumsum([0, *(len(one) for one in flat)]).astype(np.int32)
    kind = schema.field("tokens").type.value_type
    values = pa.FixedSizeBinaryArray.from_buffers(kind, len(tokens), [None, pa.py_buffer(tokens)])
    columns = {
        "image_id": pa.array([row.image_id for row in rows]),
        "view": pa.array([row.view_index for row in rows], pa.int16()),
        "grid_rows": pa.array([row.tokens.shape[0] for row in rows], pa.int16()),
        "grid_columns": pa.array([row.tokens.shape[1] for row in rows], pa.int16()),
        **{name: pa.array([getattr(row.view, name) for row in rows], kind) for name, kind in _VIEW_TYPES.items()},
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), values, type=schema.field("tokens").type),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


@contextmanager
def open_feature_writer(path: Path, provenance: FeatureMetadata) -> Iterator[FeatureWriter]:
    """Write one shard of a table to `path`; it appears there whole, or not at all."""
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with atomic_write(path) as beside, pq.ParquetWriter(beside, _schema(provenance), **options) as parquet:
        writer = FeatureWriter(parquet)
        yield writer
        writer.flush()


class FeatureTable:
    """Reads a folder of shards by row group, which are numbered from shard to shard.

    `expect` names what their provenance must be; anything else raises `InputError`, as does a folder without shards.
    """

    def __init__(self, path: Path, **expect: object):
        self.path = path
        self._files = [pq.ParquetFile(one, memory_map=True) for one in sorted(path.glob("*.parquet"))]
        if not self._files:
            raise InputError(f"{path}: no features here; run `dvc repro`")
        made_with = {_provenance(one) for one in self._files}
        if len(made_with) > 1:
            raise InputError(f"{path}: shards that were made with different settings; run `dvc repro` to extract anew")
        self.metadata = made_with.pop()
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        for key, expected in expect.items():
            if getattr(self.metadata, key) != expected:
                found = getattr(self.metadata, key)
                raise InputError(f"{path}: {key} is {found!r}, expected {expected!r}; run `dvc repro` to extract anew")

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    @property
    def num_groups(self) -> int:
        """How many row groups there are."""
        return len(self._groups)

    @cached_property
    def group_views(self) -> tuple[int, ...]:
        """The view index of every row group."""
        return tuple(file.read_row_group(group, columns=["view"]).column(0)[0].as_py() for file, group in self._groups)

    @cached_property
    def smallest_grid(self) -> tuple[int, int]:
        """The fewest rows and the fewest columns of patch tokens that any view has."""
        grids = pa.concat_tables(file.read(columns=["grid_rows", "grid_columns"]) for file in self._files)
        return pc.min(grids["grid_rows"]).as_py(), pc.min(grids["grid_columns"]).as_py()

    def groups_for_view(self, view: int) -> list[int]:
        """The row groups that hold a view index."""
        return [group for group, index in enumerate(self.group_views) if index == view]

    def batches(self, count: int) -> Iterator[list[ViewFeatures]]:
        """All views in their order, at most `count` neighbors with a grid of one shape at a time."""
        rows = (one for group in range(self.num_groups) for one in self.read_group(group))
        return batch_by_key(rows, lambda one: one.tokens.shape, lambda _: count)

    def read_group(self, index: int) -> list[ViewFeatures]:
        """The views of one row group; their tokens are windows into the group's own memory."""
        file, number = self._groups[index]
        table = file.read_row_group(number).combine_chunks()
        tokens = table.column("tokens").chunk(0)
        memory = _as_tensor(tokens.values, self.metadata.dim)
        starts = tokens.offsets.to_pylist()
        columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "tokens"}
        return [
            ViewFeatures(
                columns["image_id"][row],
                columns["view"][row],
                View(**{name: columns[name][row] for name in _VIEW_TYPES}),
                memory[starts[row] : starts[row + 1]].unflatten(
                    0, (columns["grid_rows"][row], columns["grid_columns"][row])
                ),
            )
            for row in range(table.num_rows)
        ]


def _provenance(file: pq.ParquetFile) -> FeatureMetadata:
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    return FeatureMetadata(**{field.name: field.type(metadata[field.name]) for field in fields(FeatureMetadata)})


def _as_tensor(values: pa.FixedSizeBinaryArray, dim: int) -> Tensor:
    """`(tokens, dim)` float16 over Arrow's own memory. Read it, do not write to it."""
    floats = pa.Array.from_buffers(
        pa.float16(), len(values) * dim, [None, values.buffers()[1]], offset=values.offset * dim
    )
    return torch.from_dlpack(floats).unflatten(0, (-1, dim))
