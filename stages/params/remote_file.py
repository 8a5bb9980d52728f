"""A file on the web, and what is known of its bytes, in one string, as pip writes it."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

HEX_DIGITS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web: `digest` is (algorithm, lower-case hex) and `size` is in bytes, where they are known."""

    url: str
    digest: tuple[str, str] | None
    size: int | None
    name: str

    @classmethod
    def parse(cls, text: str) -> "RemoteFile":
        """Read `URL#sha256=HEX&md5=HEX&size=BYTES`; each of the three may be left out, sha256 goes before md5.

        Raises `ValueError` with one line that names what is wrong.
        """
        url, _, fragment = text.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{text}': not an http or https URL")
        name = unquote(parts.path.rpartition("/")[2])
        if name in ("", ".", "..") or any(one in "/\\" or not one.isprintable() for one in name):
            raise ValueError(f"'{text}': its path ends in no file name")
        known = _fragment(text, fragment)
        digest = next(((one, known[one].lower()) for one in ("sha256", "md5") if one in known), None)
        return cls(url, digest, int(known["size"]) if "size" in known else None, name)

    @property
    def expected(self) -> str:
        """What is known of the bytes, in words."""
        told = [" ".join(self.digest)] if self.digest else []
        return ", ".join(told + [f"{self.size} bytes"] * (self.size is not None)) or "any digest"


def _fragment(text: str, fragment: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for one in filter(None, fragment.split("&")):
        key, _, value = one.partition("=")
        if key not in (*HEX_DIGITS, "size") or key in known:
            raise ValueError(f"'{text}': '{key}' is unknown or there twice; allowed are md5, sha256 and size")
        pattern = "[0-9]+" if key == "size" else f"[0-9a-fA-F]{{{HEX_DIGITS[key]}}}"
        if not re.fullmatch(pattern, value):
            wanted = "a number of bytes" if key == "size" else f"{HEX_DIGITS[key]} hexadecimal digits"
            raise ValueError(f"'{text}': {key} is '{value}', expected {wanted}")
        known[key] = value
    return known
