"""What kind of file may be opened."""

import stat
from pathlib import Path


def require_regular_file(path: Path) -> None:
    """Raise `OSError` for a missing file, and for a pipe, socket, device or folder: opening a pipe may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file but a folder, pipe, socket or device")
