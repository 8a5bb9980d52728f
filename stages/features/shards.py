"""Resumable extraction: features are written shard by shard, so an interrupted stage loses one shard at most.

DVC deletes the outputs of a stage before it runs it again. Unfinished tables are therefore kept in `data/resume` and
moved to the output folder when all shards are written.

A finished shard's checksum is recorded, and verified when the extraction resumes: a damaged shard is extracted again.

Code changes do not invalidate shards. After you edit code that changes features, delete `data/resume` to restart an
interrupted extraction.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.core.atomic import remove_folders, write_text
from stages.core.hashes import file_crc32
from stages.core.messages import join_names

WAITING = Path("data/resume/shards")
RESUME_KEY = "resume_key.json"
CHECKSUMS = "checksums.json"  # CRC-32 of every finished shard, by file name
SHARD = 512  # views: what an interruption loses at most


@dataclass(frozen=True)
class Shards:
    """An unfinished table of `count` views, written to `target` in files of `size` views.

    `metadata` holds the params and input hashes that the features depend on. With `count` and `size` it is the resume
    key: shards written under another key are deleted.
    """

    target: Path
    count: int
    metadata: Mapping[str, object]
    size: int = SHARD
    waiting: Path = WAITING

    @property
    def folder(self) -> Path:
        """The folder of finished shards until `commit`."""
        return self.waiting / self.target.relative_to(self.target.anchor)

    def missing(self) -> list[tuple[Path, range]]:
        """Return the path and the view indices of every shard that is not written yet, or that is damaged."""
        resume_key = json.dumps({**self.metadata, "count": self.count, "size": self.size}, sort_keys=True)
        key_path = self.folder / RESUME_KEY
        if not key_path.is_file() or key_path.read_bytes() != resume_key.encode():
            remove_folders(self.folder)
            write_text(key_path, resume_key)
        checksums = self._read_checksums()
        missing = []
        damaged = []
        for number, start in enumerate(range(0, self.count, self.size)):
            path = self.folder / f"{number:05d}.parquet"
            if path.is_file() and checksums.get(path.name) == file_crc32(path):
                continue
            if path.is_file():
                damaged.append(path.name)
                path.unlink()
            missing.append((path, range(start, min(start + self.size, self.count))))
        if damaged:
            print(f"{self.folder}: damaged shards, extracted again: {join_names(damaged)}")
        return missing

    def finish(self, path: Path) -> None:
        """Record the checksum of a shard that is written. A shard without it is extracted again."""
        checksums = self._read_checksums() | {path.name: file_crc32(path)}
        write_text(self.folder / CHECKSUMS, json.dumps(checksums))

    def _read_checksums(self) -> dict[str, int]:
        """Return the recorded checksums; none if the record is missing or damaged."""
        try:
            checksums = json.loads((self.folder / CHECKSUMS).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return checksums if isinstance(checksums, dict) else {}

    def files(self) -> list[Path]:
        """Return the finished shards in order."""
        return sorted(self.folder.glob("*.parquet"))

    def commit(self) -> None:
        """Move all shards to `target` and replace what is in it."""
        remove_folders(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, self.target)  # a rename if both are on one file system
        for name in (RESUME_KEY, CHECKSUMS):
            (self.target / name).unlink(missing_ok=True)
