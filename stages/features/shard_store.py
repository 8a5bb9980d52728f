"""Where finished shards wait until a table is complete: a folder of this machine, or of an object store.

Beside every shard lies its checksum, written after it. A shard without one is unfinished, so nothing half-written is
ever read, whichever process or machine wrote it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException, fs

from stages.core.atomic import atomic_write
from stages.core.hashes import file_crc32
from stages.core.stage import InputError, first_line

CHECKSUM = ".crc32"  # appended to a shard's file name


@dataclass(frozen=True)
class ShardStore:
    """A folder of files: `location` is a path, or a URI that pyarrow can open, such as `s3://bucket/folder`."""

    location: str

    @property
    def is_local(self) -> bool:
        """Whether `location` is a path of this machine, or of a file system that it has mounted."""
        return "://" not in self.location

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors of an object store into an `InputError` that names `compute.store`; those of a disk pass."""
        try:
            yield
        except (ArrowException, OSError, ValueError) as error:
            if self.is_local:
                raise
            raise InputError(f"compute.store: {self.location}: {first_line(error)}") from error

    def _open(self, name: str = "") -> tuple[fs.FileSystem, str]:
        """Return the file system and the path of a file, or of the folder."""
        if self.is_local:
            return fs.LocalFileSystem(), str(Path(self.location) / name)
        with self._errors():
            filesystem, folder = fs.FileSystem.from_uri(self.location)
        return filesystem, f"{folder}/{name}" if name else folder

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        filesystem, path = self._open(name)
        with self._errors():
            try:
                with filesystem.open_input_stream(path) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        filesystem, path = self._open(name)
        with self._errors():
            filesystem.create_dir(str(Path(path).parent), recursive=True)
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)

    @contextmanager
    def write_shard(self, name: str) -> Iterator[Path]:
        """Yield a path on this machine to write a shard to; on success, store it with its checksum."""
        if self.is_local:
            target = Path(self.location) / name
            with atomic_write(target) as path:
                yield path
            checksum = file_crc32(target)
        else:
            filesystem, destination = self._open(name)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                yield path
                checksum = file_crc32(path)
                with self._errors():
                    fs.copy_files(str(path), destination, fs.LocalFileSystem(), filesystem)
        self.write(name + CHECKSUM, str(checksum).encode())

    def finished(self) -> set[str]:
        """Names of the shards that have a checksum."""
        filesystem, folder = self._open()
        with self._errors():
            files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        names = {file.base_name for file in files}
        return {name for name in names if name + CHECKSUM in names}

    def has_checksum(self, name: str, path: Path) -> bool:
        """Whether `path`, a copy of a shard on this machine, has the shard's checksum."""
        return self.read(name + CHECKSUM) == str(file_crc32(path)).encode()

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a shard into a folder of this machine. Raises `InputError` if it does not have its checksum."""
        filesystem, path = self._open(name)
        with atomic_write(folder / name) as temporary:
            with self._errors():
                fs.copy_files(path, str(temporary), filesystem, fs.LocalFileSystem())
            if not self.has_checksum(name, temporary):
                raise InputError(f"{self.location}/{name} is damaged; delete it and run the stage again")

    def delete_shard(self, name: str) -> None:
        """Delete a shard and its checksum."""
        filesystem, path = self._open(name)
        with self._errors():
            filesystem.delete_file(path + CHECKSUM)  # first: a shard without a checksum is not read
            filesystem.delete_file(path)

    def delete(self) -> None:
        """Delete the folder with all its files, if it exists."""
        filesystem, folder = self._open()
        with self._errors():
            filesystem.delete_dir_contents(folder, missing_dir_ok=True)
            if filesystem.get_file_info(folder).type == fs.FileType.Directory:
                filesystem.delete_dir(folder)
