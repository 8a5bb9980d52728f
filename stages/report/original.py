"""What the source reports print, to stand beside our numbers (`original.json`)."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_original() -> dict[str, Any]:
    """The reports' tables: caption, columns, and rows by run name, in the reports' order."""
    return json.loads(Path(__file__).with_name("original.json").read_text(encoding="utf-8"))
