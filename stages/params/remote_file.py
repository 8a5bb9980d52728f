"""A file's URL with its expected hash and size, written as one string in the way of pip."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from stages.core.messages import quote_value

# The keys of a URL's fragment: the pattern of their values, and the same in words.
FRAGMENT_KEYS = {
    "md5": ("[0-9a-fA-F]{32}", "32 hexadecimal digits"),
    "sha256": ("[0-9a-fA-F]{64}", "64 hexadecimal digits"),
    "size": ("[0-9]{1,15}", "a number of bytes"),
}


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web. `digest` is (algorithm, lowercase hex), `size` is in bytes; None if unknown."""

    url: str
    digest: tuple[str, str] | None
    size: int | None
    name: str

    @classmethod
    def parse(cls, text: str) -> "RemoteFile":
        """Parse `URL#sha256=HEX&md5=HEX&size=BYTES`; each of the three is optional, and sha256 takes precedence.

        Raises `ValueError` with one line that names the problem.
        """
        url, _, fragment = text.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{quote_value(text)}: not an http or https URL")
        name = unquote(parts.path.rpartition("/")[2])
        # The file is saved under this name: it must not lead to another folder.
        if name in ("", ".", "..") or not name.isprintable() or re.search(r"[/\\]", name):
            raise ValueError(f"{quote_value(text)}: the URL has no file name")
        expected = _parse_fragment(text, fragment)
        algorithm = next((algorithm for algorithm in ("sha256", "md5") if algorithm in expected), None)
        digest = (algorithm, expected[algorithm].lower()) if algorithm else None
        size = int(expected["size"]) if "size" in expected else None
        return cls(url, digest, size, name)

    @property
    def expected(self) -> str:
        """The expected hash and size, for messages."""
        words = []
        if self.digest:
            words.append(" ".join(self.digest))
        if self.size is not None:
            words.append(f"{self.size} bytes")
        return ", ".join(words) or "hash unknown"


def _parse_fragment(text: str, fragment: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in filter(None, fragment.split("&")):
        key, _, value = item.partition("=")
        if key not in FRAGMENT_KEYS or key in values:
            allowed = ", ".join(FRAGMENT_KEYS)
            raise ValueError(f"{quote_value(text)}: {quote_value(key)} is unknown or repeated; allowed are {allowed}")
        pattern, words = FRAGMENT_KEYS[key]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{quote_value(text)}: {key} is {quote_value(value)}, expected {words}")
        values[key] = value
    return values
