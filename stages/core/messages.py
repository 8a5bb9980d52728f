"""Parts of messages that several stages share."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

QUOTED_LENGTH = 100
LINE_BREAK = re.compile(r"\s*[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")  # tabs, and what `str.splitlines` splits at
# A terminal's, those that change the direction of the text after them, and lone surrogates, which no file can hold.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# `NAME:PASSWORD@` before a host. A password in a database's URL may hold "/", which otherwise ends the host; digits
# and "/" after the colon are a port. Lengths are bounded, so that matching takes linear time.
USER_INFO = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,30}://)(?:[^\s/?#]{0,500}|[^\s:/?#@]{0,200}:(?!\d+[/?#])\S{0,300})@", re.IGNORECASE
)
SECRET_KEYS = "token|secret|password|passwd|pwd|signature|credential|api_?key|access_?key|auth|sig|key"
# A value in a URL's query whose key ends in such a word: `?access_token=...`, `&X-Amz-Signature=...`.
SECRET_PARAMETER = re.compile(rf"([?&](?:[^\s=&#?]{{0,100}}[-_.])?(?:{SECRET_KEYS})=)[^\s&#'\"]+", re.IGNORECASE)
HIDDEN = "***"


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
    text = escape_controls(text)  # the `repr` of classes other than `str` may contain any character
    return text if len(text) <= QUOTED_LENGTH else text[: QUOTED_LENGTH - 3] + "..."


def escape_controls(text: str) -> str:
    """Return `text` in one line: control characters and others that are not printed are escaped as `repr` does."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable_line(text: str) -> str:
    """`text` in one line for figures and pages: no line breaks and tabs, control characters escaped.

    Unlike `quote_value`, it leaves all other characters as they are, such as those that join an emoji.
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], LINE_BREAK.sub(" ", text))


def hide_credentials(text: str) -> str:
    """`text` with `***` in place of user names, passwords and tokens in the URLs that it holds."""
    text = USER_INFO.sub(rf"\1{HIDDEN}@", text)
    return SECRET_PARAMETER.sub(rf"\1{HIDDEN}", text)


def join_names(names: Sequence[str], limit: int = 12) -> str:
    """The first `limit` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
