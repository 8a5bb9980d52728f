"""Extract an archive completely or not at all, inside its folder, up to a total size."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from stages.core.atomic import atomic_dir
from stages.core.stage import InputError, first_line

MAX_BYTES = 1 << 36  # 64 GiB; VOC 2012, the largest archive of the paper profile, has 2 GB
BLOCK = 1 << 20  # bytes per read
FORMAT_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,  # a truncated gzip file
    ValueError,
    RuntimeError,  # an encrypted zip member; `NotImplementedError` for an unknown compression
)

MemberFilter = Callable[[str], bool]


def extract_archive(archive: Path, folder: Path, only: MemberFilter | None = None, max_bytes: int = MAX_BYTES) -> None:
    """Extract a .tar, .tar.gz, .tgz or .zip to the new `folder`.

    `only` gets the path of each file in the archive ("a/b.jpg") and returns whether to write it; all members are
    checked. Raises `InputError` if the archive is damaged, if a member is not a plain file or lies outside `folder`,
    if the files together have more than `max_bytes`, or if `folder` exists.
    """
    extract = next((EXTRACTORS[suffix] for suffix in EXTRACTORS if archive.name.lower().endswith(suffix)), None)
    if extract is None:
        raise InputError(f"{archive}: not an archive by its name; allowed are {', '.join(EXTRACTORS)}")
    if not archive.is_file():
        raise InputError(f"{archive}: missing")
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it to extract {archive} again")
    try:
        with atomic_dir(folder) as temporary:
            extract(archive, temporary, only, max_bytes)
    except FORMAT_ERRORS as error:
        raise InputError(f"{archive}: truncated, or not an archive of its kind ({first_line(error)})") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"{archive} cannot be extracted to {folder}: {reason}") from error


def _extract_tar(archive: Path, folder: Path, only: MemberFilter | None, max_bytes: int) -> None:
    written = 0
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"extract {archive.name}", unit=" files", mininterval=1):
            # A sparse file may be larger than its header says.
            is_plain = (member.isreg() and not member.issparse()) or member.isdir()
            name = _check_member(archive, member.name, is_plain)
            if member.isreg() and (only is None or only(name)):
                written += member.size  # tarfile writes exactly this many bytes
                _check_size(archive, name, written, max_bytes)
                tar.extract(member, folder, filter="data")
        # tarfile takes a damaged header for the end of the archive. The true end is two blocks of zeros, the first of
        # which it has read.
        assert tar.fileobj is not None
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive marker")
        while tar.fileobj.read(BLOCK):  # gzip compares its checksum at the end of the file
            pass


def _extract_zip(archive: Path, folder: Path, only: MemberFilter | None, max_bytes: int) -> None:
    written = 0
    with zipfile.ZipFile(archive) as members:
        for info in tqdm(members.infolist(), desc=f"extract {archive.name}", unit=" files", mininterval=1):
            # The upper half has the Unix mode; its file type is 0 if the archive was made on another system.
            file_type = stat.S_IFMT(info.external_attr >> 16)
            name = _check_member(archive, info.filename, file_type in (0, stat.S_IFREG, stat.S_IFDIR))
            if not info.is_dir() and (only is None or only(name)):
                written += info.file_size  # zipfile writes at most this many bytes
                _check_size(archive, name, written, max_bytes)
                members.extract(info, folder)


EXTRACTORS = {".tar": _extract_tar, ".tar.gz": _extract_tar, ".tgz": _extract_tar, ".zip": _extract_zip}


def _check_member(archive: Path, name: str, is_plain: bool) -> str:
    """Return a member's path without "./"; raise `InputError` for a link, a device or a path outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{archive}: {name!r} lies outside the folder")
    if not is_plain:
        raise InputError(f"{archive}: {name!r} is a link or a special file; only plain files are extracted")
    return str(path)


def _check_size(archive: Path, name: str, written: int, max_bytes: int) -> None:
    if written > max_bytes:
        raise InputError(f"{archive}: with {name!r} it extracts to more than {max_bytes} bytes")
