"""How params name a pretrained model: a file or its address, or a name with a revision."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_url(source: str) -> bool:
    """Whether a source is to be fetched from the web."""
    return source.startswith(("http://", "https://"))


def is_checkpoint_file(source: str) -> bool:
    """Whether a source is a checkpoint's file or address, rather than a name or a folder."""
    return PurePosixPath(_path(source)).suffix in FILES


def split_revision(source: str) -> tuple[str, str | None]:
    """Name and revision of `NAME` or `NAME@REVISION`."""
    name, _, revision = source.partition("@")
    return name, revision or None


def display_name(source: str) -> str:
    """What people call it: an address's file, a name without its revision; a path as it is."""
    if is_url(source):
        return PurePosixPath(_path(source)).name
    return source if is_checkpoint_file(source) else split_revision(source)[0]


def _path(source: str) -> str:
    """An address's path without what comes behind it; a file's as it is."""
    return urlsplit(source).path if is_url(source) else source
