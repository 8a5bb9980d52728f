"""Long extractions in shards: a killed stage loses no more than the one it was at, and goes on from there.

DVC removes a stage's outputs before it runs it again, so shards wait in a folder of their own until all are there.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.core.atomic import write_text

WAITING = Path("data/resume/shards")
FACTS = "made_with.json"
SHARD = 512  # views


@dataclass(frozen=True)
class Shards:
    """The table `target` of `count` views while it is made, `size` views a file.

    What waits and was made with anything but `made_with`, or by other code, is thrown away.
    """

    target: Path
    count: int
    metadata: Mapping[str, object]
    size: int = SHARD
    waiting: Path = WAITING

    @property
    def folder(self) -> Path:
        """Where shards wait."""
        return self.waiting / self.target.relative_to(self.target.anchor)

    def missing(self) -> list[tuple[Path, range]]:
        """The file of every shard that is still to be made, and which views it holds."""
        facts = json.dumps({**self.metadata, "count": self.count, "size": self.size, "code": _code()}, sort_keys=True)
        kept = self.folder / FACTS
        if not (kept.is_file() and kept.read_text() == facts):
            shutil.rmtree(self.folder, ignore_errors=True)
            write_text(kept, facts)
        starts = range(0, self.count, self.size)
        spans = [range(start, min(start + self.size, self.count)) for start in starts]
        paths = [self.folder / f"{number:05d}.parquet" for number in range(len(spans))]
        return [(path, span) for path, span in zip(paths, spans, strict=True) if not path.is_file()]

    def files(self) -> list[Path]:
        """The shards that are there, in their order."""
        return sorted(self.folder.glob("*.parquet"))

    def commit(self) -> None:
        """Move all to `target`, in place of what was there."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder, self.target)  # a rename, where both are on one disk
        (self.target / FACTS).unlink()


def _code() -> str:
    """A hash of all code of this project that the process has loaded."""
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "stages" or name == "__main__"]
    files = sorted({module.__file__ for module in ours if getattr(module, "__file__", None)})
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
