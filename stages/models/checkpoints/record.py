"""Records where each model of the profile is on this machine, and which bytes it has."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from stages.core.atomic import write_text
from stages.core.messages import quote_value
from stages.core.stage import InputError, first_line

FOLDER = Path("data/fetched")
# What libraries raise for damaged files, and for a model's config that holds values of any type: 0 heads, a text.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: `path` is a file of weights, or a folder with the weights and the files that belong to them.

    `sha256` is the hash of the weights as published, before conversion; `revision` is the commit on the hub, if any.
    """

    source: str
    path: str
    sha256: str
    revision: str | None = None

    @property
    def file(self) -> Path:
        """`path` as a `Path`."""
        return Path(self.path)


def record_path(kind: str) -> Path:
    """Return the path of the record of "backbone", "blip", "classifier" or "catr"."""
    return FOLDER / f"{kind}.json"


def write_checkpoint(kind: str, checkpoint: Checkpoint | None) -> None:
    """Write a record; null if the profile has no such model, as DVC expects the file."""
    write_text(record_path(kind), json.dumps(asdict(checkpoint) if checkpoint else None, indent=1) + "\n")


@contextmanager
def loading_errors(key: str, source: str) -> Iterator[None]:
    """Turn errors of loading a model into an `InputError`, one line that names its param."""
    try:
        yield
    except LOADING_ERRORS as error:
        raise InputError(f"{key} = {quote_value(source)}: {first_line(error)}") from error


def read_checkpoint(kind: str, source: str) -> Checkpoint:
    """Return the record of `kind`; raise `InputError` if it is not of `source` or its files are gone."""
    path = record_path(kind)
    record = json.loads(path.read_text()) if path.exists() else None
    if record is None or record["source"] != source:
        content = quote_value(record["source"]) if record else "nothing"
        raise InputError(f"{path} holds {content}, not {quote_value(source)}; run `dvc repro checkpoints`")
    checkpoint = Checkpoint(**record)
    if not checkpoint.file.exists():
        raise InputError(f"{checkpoint.path} of {quote_value(source)} is gone; run `dvc repro -f checkpoints`")
    return checkpoint
