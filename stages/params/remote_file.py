"""A file's URL with its expected hash and size, written as one string in the way of pip.

Credentials in URLs are taken out when params are read, so that nothing can show or store them; downloads get them back.
"""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from stages.core.messages import hide_credentials, quote_value

# The keys of a URL's fragment: the pattern of their values, and the same in words.
FRAGMENT_KEYS = {
    "md5": ("[0-9a-fA-F]{32}", "32 hexadecimal digits"),
    "sha256": ("[0-9a-fA-F]{64}", "64 hexadecimal digits"),
    "size": ("[0-9]{1,18}", "a number of bytes"),
}
NAME_BYTES = 200  # of a file's name: file systems allow 255, and a download appends suffixes

_secret_urls: dict[str, str] = {}  # URLs with credentials, by the same URLs without


def is_url(text: str) -> bool:
    """Whether a text is an HTTP(S) URL."""
    return text.lower().startswith(("http://", "https://"))


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
        quoted = quote_value(hide_credentials(text))
        url, _, fragment = text.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{quoted}: not an http or https URL")
        name = unquote(parts.path.rpartition("/")[2])
        # The file is saved under this name: it must not lead to another folder.
        if name in ("", ".", "..") or not name.isprintable() or re.search(r"[/\\]", name):
            raise ValueError(f"{quoted}: the URL has no file name")
        if len(name.encode()) > NAME_BYTES:
            raise ValueError(f"{quoted}: the file name is longer than {NAME_BYTES} bytes")
        expected = _parse_fragment(quoted, fragment)
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


def take_credentials(params: Any) -> None:
    """Replace credentials in the URLs of `params` (dicts, lists and values) by `***`; `with_credentials` knows them."""
    containers = [params]
    visited: set[int] = set()  # aliases in YAML refer to one object any number of times
    while containers:
        container = containers.pop()
        if id(container) in visited or not isinstance(container, dict | list):
            continue
        visited.add(id(container))
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str) and is_url(value):
                container[key] = _take_from_url(value)
            else:
                containers.append(value)


def _take_from_url(text: str) -> str:
    url, separator, fragment = text.partition("#")
    hidden = hide_credentials(url)
    if hidden != url:
        _secret_urls[hidden] = url
    return hidden + separator + fragment


def with_credentials(url: str) -> str:
    """The URL of a file, or a prefix of one, with the credentials that `take_credentials` took from it."""
    return _secret_urls.get(url, url)


def _parse_fragment(quoted: str, fragment: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in filter(None, fragment.split("&")):
        key, _, value = item.partition("=")
        if key not in FRAGMENT_KEYS or key in values:
            allowed = ", ".join(FRAGMENT_KEYS)
            raise ValueError(f"{quoted}: {quote_value(key)} is unknown or repeated; allowed are {allowed}")
        pattern, words = FRAGMENT_KEYS[key]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{quoted}: {key} is {quote_value(value)}, expected {words}")
        values[key] = value
    return values
