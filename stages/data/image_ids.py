"""Image IDs and file names that users' files list: which are safe to use as parts of paths."""

import unicodedata
from pathlib import PurePosixPath

# File systems allow 255 bytes in a name; suffixes, such as those of pictures and temporary files, are added to IDs.
MAX_BYTES = 200
# Control characters, lone surrogates, and the separators of lines and paragraphs.
FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")


def has_control_characters(text: str) -> bool:
    """Tell whether a text has characters that end a line, control a terminal or cannot be encoded."""
    return not text.isprintable() and any(unicodedata.category(character) in FORBIDDEN_CATEGORIES for character in text)


def image_id_problem(image_id: str) -> str | None:
    """Say why `image_id` is not the name of a file without its suffix; None if it is.

    Paths of images, masks and pictures are built from it, so it must not lead out of their folders.
    """
    if "/" in image_id:
        return "an image ID is a file name without folder and suffix"
    return _name_problem(image_id)


def file_name_problem(file_name: str) -> str | None:
    """Say why `file_name` is not the path of a file below the data set's folder, or not one of an image ID."""
    for name in file_name.split("/"):  # an absolute path has an empty name before its first slash
        problem = _name_problem(name)
        if problem:
            return problem
    return image_id_problem(PurePosixPath(file_name).stem)


def _name_problem(name: str) -> str | None:
    if has_control_characters(name):
        return "a file name must not have control characters"
    if name in ("", ".", "..") or "\\" in name:
        return "expected a file name inside the folder, without '..' and backslashes"
    if len(name.encode()) > MAX_BYTES:
        return f"a file name must not be longer than {MAX_BYTES} bytes"
    return None
