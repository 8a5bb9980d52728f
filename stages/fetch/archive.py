"""Archives are extracted whole or not at all, and nothing in one gets outside its folder or floods the disk."""

import fcntl
import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from stages.core.stage import InputError, first_line

MOST_BYTES = 1 << 36
MOST_FILES = 1_000_000
GZIP = b"\x1f\x8b"  # what a gzip file begins with
MOST_GROWTH = 200  # unpacked bytes per byte of the archive; pictures are near 1, text near 10, zeros near 1000
ALWAYS_ALLOWED = 1 << 20  # bytes: what is this small floods nothing, whatever its growth
MOST_HEADER = 1 << 20  # bytes between two members of a tar archive, which are read into memory
BLOCK = 1 << 20
KINDS = (".tar", ".tar.gz", ".tgz", ".zip")
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class _Entry:
    """A member as its header tells it: `kind` is "file", "folder" or what else it is in words, `packed` is bytes."""

    name: str
    kind: str
    executable: bool
    packed: int
    read: Callable[[], BinaryIO]


def extract_archive(
    archive: Path,
    folder: Path,
    only: Callable[[str], bool] | None = None,
    most_bytes: int = MOST_BYTES,
    most_files: int = MOST_FILES,
) -> None:
    """Extract a .tar, .tar.gz, .tgz or .zip to `folder`, which is not there before and is whole once it is there.

    `only` is asked with each member's path ("a/b.jpg"; folders too); all members are checked, those it accepts are
    written. `most_bytes` bounds what is written, `most_files` the members. Modes become 0644 or 0755 less the umask;
    times are those of the extraction, so that what goes by them sees new files.

    Raises `InputError` naming the member that is no plain file or folder, would leave `folder` or is there twice with
    unlike content, or what exceeds its bound; and for a broken archive, or a `folder` that exists.
    """
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; remove it to extract {archive} again")
    if not archive.is_file():
        raise InputError(f"{archive}: missing")
    with _readable(archive, folder), _becoming(folder) as beside:
        _extract_to(beside, archive, only, _Budget(archive, most_bytes), most_files)


@contextmanager
def _readable(archive: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN as fault:
        raise InputError(f"{archive}: truncated, or no archive of its kind ({first_line(fault)})") from None
    except OSError as fault:
        raise InputError(f"{archive} cannot be extracted to {folder}: {fault.strerror or first_line(fault)}") from None


@contextmanager
def _becoming(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its name on success and goes away on failure.

    It is locked while it is written: one without a lock was left by a run that was killed, whatever became of its
    process number, and is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.iterdir():
        if re.fullmatch(re.escape(folder.name) + r"\.\d+\.tmp", left.name):
            _remove_unless_locked(left)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    beside.mkdir()
    descriptor = os.open(beside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a disk without locks: then nobody takes it for left, either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield beside
        _take_name(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _take_name(beside: Path, folder: Path) -> None:
    """Another process may have been faster with the same: then its folder stays."""
    try:
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(beside, ignore_errors=True)


def _remove_unless_locked(left: Path) -> None:
    with suppress(OSError):  # locked, removed by another run, or no folder
        descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        finally:
            os.close(descriptor)


class _Budget:
    """Bytes counted as they are read; what a header says of them is not believed."""

    def __init__(self, archive: Path, most_bytes: int) -> None:
        self.archive, self.most_bytes, self.written = archive, most_bytes, 0
        self._growth = max(ALWAYS_ALLOWED, MOST_GROWTH * archive.stat().st_size)

    def bound_growth(self, unpacked: int) -> None:
        if unpacked > self._growth:
            raise InputError(
                f"{self.archive}: unpacks to more than {MOST_GROWTH} times its own size ({self._growth} bytes)"
            )

    def spend(self, count: int, name: str) -> None:
        self.written += count
        if self.written > self.most_bytes:
            raise InputError(f"{self.archive}: with {name!r} it unpacks to more than {self.most_bytes} bytes")
        self.bound_growth(self.written)


def _extract_to(
    root: Path, archive: Path, only: Callable[[str], bool] | None, budget: _Budget, most_files: int
) -> None:
    size = archive.stat().st_size
    with (
        tqdm(total=size, desc=f"extract {archive.name}", unit="B", unit_scale=True, mininterval=1) as bar,
        closing(_entries(archive, root, budget)) as entries,
    ):
        for count, entry in enumerate(entries, start=1):
            if count > most_files:
                raise InputError(f"{archive}: more than {most_files} members")
            name = _checked_name(archive, entry)
            if only is None or only(name):
                _write(root / name, name, entry, budget)
            bar.update(entry.packed)


def _checked_name(archive: Path, entry: _Entry) -> str:
    """The path below the folder, without "./". Raises `InputError` for one that leads elsewhere, and for no file."""
    name = entry.name
    if "\\" in name or "\0" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
        raise InputError(f"{archive}: {name!r} is no path inside the folder")
    path = PurePosixPath(name)
    if ".." in path.parts:
        raise InputError(f"{archive}: {name!r} reaches outside the folder")
    if entry.kind not in ("file", "folder"):
        raise InputError(f"{archive}: {name!r} is {entry.kind}; only files and folders are extracted")
    if entry.kind == "file" and (not path.parts or name.endswith("/")):
        raise InputError(f"{archive}: {name!r} is no name for a file")
    return str(path)


def _write(path: Path, name: str, entry: _Entry, budget: _Budget) -> None:
    try:
        if entry.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, name, entry, budget)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{budget.archive}: {name!r} is a file and a folder at once") from None


def _write_file(path: Path, name: str, entry: _Entry, budget: _Budget) -> None:
    if path.is_file():
        with entry.read() as source, path.open("rb") as there:
            if not _same(source, there, name, budget):
                raise InputError(f"{budget.archive}: {name!r} is there twice, with unlike content")
        return
    mode = 0o755 if entry.executable else 0o644
    with entry.read() as source, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        for block in _blocks(source, name, budget):
            file.write(block)


def _same(source: BinaryIO, there: BinaryIO, name: str, budget: _Budget) -> bool:
    return all(block == there.read(len(block)) for block in _blocks(source, name, budget)) and not there.read(1)


def _blocks(source: BinaryIO, name: str, budget: _Budget) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        budget.spend(len(block), name)
        yield block


def _entries(archive: Path, root: Path, budget: _Budget) -> Iterator[_Entry]:
    suffix = next((kind for kind in KINDS if archive.name.lower().endswith(kind)), None)
    if suffix is None:
        raise InputError(f"{archive}: no archive by its name; allowed are {', '.join(KINDS)}")
    if suffix == ".zip":
        yield from _zip_entries(archive)
        return
    with archive.open("rb") as raw:
        if raw.read(2) != GZIP:  # whatever its name says: some .tar.gz are plain tar
            raw.seek(0)
            yield from _tar_entries(raw, raw, root, budget)
            return
        raw.seek(0)
        with gzip.open(raw) as unpacked:
            yield from _tar_entries(raw, unpacked, root, budget)


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as members:
        for info in members.infolist():
            if info.flag_bits & 1:
                raise InputError(f"{archive}: {info.orig_filename!r} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # `zipfile` unpacks the others without a bound on memory
                raise InputError(f"{archive}: {info.orig_filename!r} is packed by another method than deflate")
            mode = info.external_attr >> 16
            yield _Entry(
                info.orig_filename,  # `filename` ends at a NUL
                _zip_kind(info, mode),
                bool(mode & stat.S_IXUSR),
                info.compress_size,
                lambda info=info: members.open(info),
            )


def _zip_kind(info: zipfile.ZipInfo, mode: int) -> str:
    kind = stat.S_IFMT(mode)  # 0 where the archive was not made on Unix
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device or FIFO"
    return "folder" if info.is_dir() or kind == stat.S_IFDIR else "file"


class _Member(tarfile.TarInfo):
    """A header of which a damaged or missing one ends in an error; `tarfile` takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the zeros at the end
            raise
        except tarfile.HeaderError as fault:
            raise tarfile.ReadError(f"no member's header at byte {archive.offset}: {fault}") from None


class _Watched:
    """A tar archive's bytes, counted: all against the bound on growth, those of headers against one of their own."""

    def __init__(self, source: BinaryIO, budget: _Budget) -> None:
        self._source, self._budget, self._count, self._allowed = source, budget, 0, MOST_HEADER

    def allow(self, content: int) -> None:
        """Let through the bytes of the member whose header was read, and of the headers after it."""
        self._allowed = self._count + content + MOST_HEADER

    def read(self, count: int) -> bytes:
        block = self._source.read(count)
        self._count += len(block)
        self._budget.bound_growth(self._count)
        if self._count > self._allowed:
            raise InputError(f"{self._budget.archive}: a header of more than {MOST_HEADER} bytes")
        return block

    def drain(self) -> None:
        """Read what follows the archive's end mark: gzip checks its sum there."""
        while block := self._source.read(BLOCK):
            self._count += len(block)
            self._budget.bound_growth(self._count)


def _tar_entries(raw: BinaryIO, unpacked: BinaryIO, root: Path, budget: _Budget) -> Iterator[_Entry]:
    watched = _Watched(unpacked, budget)
    position = 0
    with tarfile.open(fileobj=watched, mode="r|", tarinfo=_Member) as members:
        while (member := members.next()) is not None:
            members.members.clear()  # it keeps all; links, which would need them, are refused
            watched.allow(member.size)
            kind = _tar_kind(member)
            yield _Entry(
                member.name,
                kind if kind != "file" or _passes_filter(member, root) else "refused by Python's filter for data",
                bool(member.mode & stat.S_IXUSR),
                raw.tell() - position,
                lambda member=member: members.extractfile(member),
            )
            position = raw.tell()
    watched.drain()


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "a symbolic link"
    if member.islnk():
        return "a hard link"
    if member.isdev():
        return "a device or FIFO"
    if member.issparse():  # its holes are not in the archive, so they would not be counted
        return "a sparse file"
    if member.isdir():
        return "folder"
    return "file" if member.type in tarfile.REGULAR_TYPES else f"of the unknown type {member.type!r}"


def _passes_filter(member: tarfile.TarInfo, root: Path) -> bool:
    """What Python itself thinks of the member, after the checks here: a second pair of eyes."""
    try:
        tarfile.data_filter(member, str(root))
    except tarfile.FilterError:
        return False
    return True
