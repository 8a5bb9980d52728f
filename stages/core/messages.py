"""Parts of messages that several stages share."""

import reprlib
from collections.abc import Sequence
from pathlib import Path

QUOTED_LENGTH = 100


class _BoundedRepr(reprlib.Repr):
    """`repr` that reads only the first items of a container: aliases in YAML can make one with millions of them."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = QUOTED_LENGTH

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to print more than 4300 digits, and is slow at many.
        bits = value.bit_length()
        return super().repr_int(value, level) if bits < 1000 else f"<integer of {bits} bits>"


_BOUNDED_REPR = _BoundedRepr()


def quote_value(value: object) -> str:
    """Return `value` for a message: as `repr` prints it, in one line of at most 100 characters.

    Control characters, such as newlines and a terminal's escape sequences, are escaped. A path is quoted as a string.
    """
    text = _BOUNDED_REPR.repr(str(value) if isinstance(value, Path) else value)
    # The `repr` of classes other than `str` may contain any character.
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= QUOTED_LENGTH else text[: QUOTED_LENGTH - 3] + "..."


def join_names(names: Sequence[str], limit: int = 12) -> str:
    """The first `limit` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
