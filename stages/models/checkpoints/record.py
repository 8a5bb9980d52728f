"""Where a model that a profile asks for lies on this machine, and which bytes it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.core.atomic import write_text
from stages.core.stage import InputError, first_line

FOLDER = Path("data/fetched")
KINDS = ("backbone", "blip", "classifier", "catr")


@dataclass(frozen=True)
class Checkpoint:
    """`path` is a file of weights, or a folder that holds one with all that belongs to it.

    `sha256` is that of the weights; `revision` is a hub's, None for what comes from elsewhere.
    """

    source: str
    path: str
    sha256: str
    revision: str | None = None

    @property
    def file(self) -> Path:
        """Where it lies."""
        return Path(self.path)


def record_path(kind: str) -> Path:
    """The record of one of `KINDS`."""
    return FOLDER / f"{kind}.json"


def write_checkpoint(kind: str, checkpoint: Checkpoint | None) -> None:
    """Write a record; of a kind that the profile has none of, too: DVC asks for the file."""
    write_text(record_path(kind), json.dumps(asdict(checkpoint) if checkpoint else None, indent=1) + "\n")


@contextmanager
def loading_errors(key: str, source: str) -> Iterator[None]:
    """What goes wrong when a model is loaded becomes an `InputError`, one line that names its param."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as fault:
        raise InputError(f"{key} = '{source}': {first_line(fault)}") from fault


def read_checkpoint(kind: str, source: str) -> Checkpoint:
    """What `source` was brought to; raises `InputError` where it was not, or is gone."""
    try:
        told = json.loads(record_path(kind).read_text())
    except FileNotFoundError:
        told = None
    if not told or told["source"] != source:
        found = f"'{told['source']}'" if told else "nothing"
        raise InputError(f"{record_path(kind)} holds {found}, not '{source}'; run `dvc repro checkpoints`")
    if not Path(told["path"]).exists():
        raise InputError(f"{told['path']} is gone, where '{source}' lay; run `dvc repro -f checkpoints`")
    return Checkpoint(**told)
