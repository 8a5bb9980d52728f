"""A model source: how params name a pretrained model. A checkpoint file, its URL, a folder, or `NAME[@REVISION]`."""

from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from stages.params.remote_file import RemoteFile, is_url

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def _check_url(source: str) -> str:
    if is_url(source):
        RemoteFile.parse(source)
    return source


ModelSource = Annotated[str, Field(min_length=1), AfterValidator(_check_url)]


def is_checkpoint_file(source: str) -> bool:
    """Whether a source is a checkpoint file or its URL, rather than a name or a folder."""
    return _path(source).suffix in CHECKPOINT_SUFFIXES


def split_revision(source: str) -> tuple[str, str | None]:
    """Split `NAME` or `NAME@REVISION` into name and revision."""
    name, _, revision = source.partition("@")
    return name, revision or None


def display_name(source: str) -> str:
    """A short name for messages and tables: a URL's file name, a name without its revision, or a path unchanged."""
    if is_url(source):
        return _path(source).name
    return source if is_checkpoint_file(source) else split_revision(source)[0]


def _path(source: str) -> PurePosixPath:
    # A URL's path ends before `?query` and `#sha256=...`.
    return PurePosixPath(urlsplit(source).path if is_url(source) else source)
