"""How params name a pretrained model: a file or its address, or a name with a revision."""

from pathlib import Path

FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_file(source: str) -> bool:
    """Whether a source is a checkpoint's file or address, rather than a name or a folder."""
    return Path(source.split("#")[0]).suffix in FILES


def split_revision(source: str) -> tuple[str, str | None]:
    """Name and revision of `NAME` or `NAME@REVISION`."""
    name, _, revision = source.partition("@")
    return name, revision or None
