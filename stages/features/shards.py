"""Resumable extraction: features are written shard by shard, so an interrupted stage loses one shard at most.

DVC deletes the outputs of a stage before it runs it again. Unfinished tables are therefore kept in `data/resume`, or in
`compute.store`, and moved to the output folder when all shards are written.

A finished shard lies beside its checksum. When the extraction resumes, shards of this machine are verified: a damaged
one is extracted again. Those of an object store, which has checksums of its own, are verified when they are fetched.

Code changes do not invalidate shards. After you edit code that changes features, delete `data/resume` to restart an
interrupted extraction.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from stages.core.atomic import remove_folders
from stages.core.messages import join_names
from stages.core.stage import InputError
from stages.features.parquet import reading_errors
from stages.features.shard_store import CHECKSUM, ShardStore

WAITING = Path("data/resume/shards")
RESUME_KEY = "resume_key.json"
SHARD = 512  # views: what an interruption loses at most

RowKey = tuple[str, int]  # image ID and view index, the first two columns of every table


@dataclass(frozen=True)
class Shard:
    """One file of a table, and the range of its rows."""

    name: str
    rows: range


@dataclass(frozen=True)
class Shards:
    """An unfinished table with one row per element of `keys`, in their order, in files of `size` rows.

    `metadata` holds the params and input hashes that the features depend on. With the number of rows and `size` it is
    the resume key: shards written under another key are deleted. `location` is the URI of a folder in an object store,
    shared by all tables; None for a folder of this machine.
    """

    target: Path
    keys: Sequence[RowKey]
    metadata: Mapping[str, object]
    size: int = SHARD
    waiting: Path = WAITING
    location: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of this machine that holds the finished shards between `collect` and `commit`."""
        return self.waiting / self.target.relative_to(self.target.anchor)

    @property
    def resume_key(self) -> bytes:
        """What two extractions must share for one to continue the other."""
        return json.dumps({**self.metadata, "count": len(self.keys), "size": self.size}, sort_keys=True).encode()

    @property
    def store(self) -> ShardStore:
        """Where finished shards wait."""
        if self.location is None:
            return ShardStore(str(self.folder))
        # Clones and experiments may share an object store, so each key has its own folder.
        key = hashlib.sha256(self.resume_key).hexdigest()[:16]
        return ShardStore(f"{self.location.rstrip('/')}/{key}/{self.target.relative_to(self.target.anchor).as_posix()}")

    def all(self) -> list[Shard]:
        """Return all shards in order."""
        starts = range(0, len(self.keys), self.size)
        return [
            Shard(f"{number:05d}.parquet", range(start, min(start + self.size, len(self.keys))))
            for number, start in enumerate(starts)
        ]

    def missing(self) -> list[Shard]:
        """Return the shards that are not written yet, or that are damaged."""
        store = self.store
        if store.read(RESUME_KEY) != self.resume_key:
            store.delete()
            store.write(RESUME_KEY, self.resume_key)
        finished = store.finished()
        damaged: list[str] = []
        if store.is_local:
            damaged = [name for name in sorted(finished) if not store.has_checksum(name, self.folder / name)]
        for name in damaged:
            store.delete_shard(name)
        if damaged:
            print(f"{self.folder}: damaged shards, extracted again: {join_names(damaged)}")
        return [shard for shard in self.all() if shard.name not in finished.difference(damaged)]

    def collect(self) -> list[Path]:
        """Return the shards in order, on this machine, after a check that they hold every row of `keys` once, in order.

        Raises `InputError` if they do not.
        """
        paths = []
        for shard in self.all():
            path = self.folder / shard.name
            if self.location is not None:
                self.store.fetch(shard.name, self.folder)
            if _read_keys(path) != list(self.keys[shard.rows.start : shard.rows.stop]):
                raise InputError(f"{path}: not the rows that belong there; delete {self.folder} and run `dvc repro`")
            paths.append(path)
        return paths

    def commit(self) -> None:
        """Move the collected shards to `target` and replace what is in it."""
        remove_folders(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, self.target)  # a rename if both are on one file system
        for path in [self.target / RESUME_KEY, *self.target.glob(f"*{CHECKSUM}")]:
            path.unlink(missing_ok=True)
        self.delete()

    def delete(self) -> None:
        """Delete all shards that wait."""
        remove_folders(self.folder)
        self.store.delete()


def _read_keys(path: Path) -> list[RowKey]:
    """Return the first two columns of a shard."""
    with reading_errors(path):
        file = pq.ParquetFile(path)
        table = file.read(columns=file.schema_arrow.names[:2])
    return list(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))
