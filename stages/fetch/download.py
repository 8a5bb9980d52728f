"""Download a file once: resume it after a broken connection, verify it before use, reuse it offline.

A file is reused by its name. If its `RemoteFile` has a hash, the hash is checked each time; without one, the name is
trusted.
"""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from stages.core.stage import InputError
from stages.params.remote_file import RemoteFile

TIMEOUT = (10, 60)  # seconds to connect; seconds without a byte
HEAD_TIMEOUT = 5  # seconds
ATTEMPTS = 5  # requests per URL without progress
PAUSE = 1.0  # seconds before the second request; doubles with each further one
BLOCK = 1 << 16  # bytes per read
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
# Ranges and hashes refer to the bytes of the file itself, not to a compressed transfer of them.
HEADERS = {"Accept-Encoding": "identity"}

pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says what is downloaded


class DownloadError(Exception):
    """A URL does not serve the file; the next mirror may."""


class TransientError(DownloadError):
    """A failure that a later request may not meet."""


def download_file(remote: RemoteFile, folder: Path, mirrors: Mapping[str, str] | None = None) -> Path:
    """Return the path of `remote` in `folder`; download the file if it is missing.

    `mirrors` maps URL prefixes to replacements, tried in order after the URL itself.
    Raises `InputError` if the file on disk has another hash or size, if no URL serves it, or if it cannot be written.
    """
    path = folder / remote.name
    if path.exists():
        _check_file(path, remote)
        return path
    part = folder / f"{remote.name}.part"
    downloader = ResumingDownloader(remote, part)
    known_hash = ":".join(remote.digest) if remote.digest else None
    errors = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # a second process waits here, then finds the file
            for url in _urls(remote.url, mirrors):
                try:
                    pooch.retrieve(url, known_hash, fname=remote.name, path=folder, downloader=downloader)
                    return path
                except (DownloadError, ValueError) as error:  # pooch raises ValueError for a wrong hash
                    errors.append(f"{url}: {error}")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}); run again to resume the download") from error
    raise InputError(
        f"{remote.name} could not be downloaded ({'; '.join(errors)}); "
        f"download it by hand ({remote.expected}) and put it at {path}"
    )


def remote_size(remote: RemoteFile, mirrors: Mapping[str, str] | None = None) -> int | None:
    """Return the size of `remote` in bytes, from its notation or the first server that answers; None if unknown."""
    if remote.size is not None:
        return remote.size
    for url in _urls(remote.url, mirrors):
        with suppress(requests.RequestException):
            response = requests.head(url, headers=HEADERS, timeout=HEAD_TIMEOUT, allow_redirects=True)
            if response.ok and "Content-Length" in response.headers:
                return int(response.headers["Content-Length"])
    return None


def _urls(url: str, mirrors: Mapping[str, str] | None) -> list[str]:
    urls = [url]
    for prefix, mirror in (mirrors or {}).items():
        if url.startswith(prefix):
            urls.append(mirror + url.removeprefix(prefix))
    return urls


def _check_file(path: Path, remote: RemoteFile) -> None:
    """Raise `InputError` if the file on disk differs from what is known of `remote`."""
    size = path.stat().st_size
    if remote.size not in (None, size):
        raise InputError(f"{path} has {size} bytes, expected {remote.size} bytes; remove it to download it again")
    if remote.digest:
        algorithm, expected = remote.digest
        actual = pooch.file_hash(path, alg=algorithm)
        if actual != expected:
            raise InputError(
                f"{path} has {algorithm} {actual}, expected {algorithm} {expected}; remove it to download it again"
            )


@dataclass(frozen=True)
class ResumingDownloader:
    """Downloader for pooch that continues the file `part`, retries with back-off and shows a progress bar."""

    remote: RemoteFile
    part: Path

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Download `url` to `output_file`; raise `DownloadError` after `ATTEMPTS` requests without progress."""
        attempts = 0
        longest = self._length()
        while True:
            try:
                self._request(url)
                break
            except TransientError as error:
                # A part longer than ever is progress; a server without ranges may always break off at the same byte.
                attempts = 1 if self._length() > longest else attempts + 1
                longest = max(longest, self._length())
                if attempts == ATTEMPTS:
                    raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from error
                pause = PAUSE * 2 ** (attempts - 1)
                tqdm.write(f"{self.remote.name}: {error}; next attempt in {pause:g} s", file=sys.stderr)
                time.sleep(pause)
        self._validator_path.unlink(missing_ok=True)
        self.part.replace(output_file)

    @property
    def _validator_path(self) -> Path:
        return self.part.with_name(f"{self.part.name}.validator")

    def _length(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _request(self, url: str) -> None:
        """Send one request for the missing bytes and append them to the part."""
        try:
            with requests.get(url, headers=self._headers(), stream=True, timeout=TIMEOUT) as response:
                if response.status_code == 416:
                    self.part.unlink(missing_ok=True)  # not shorter than the file on the server: start over
                    raise TransientError("the file is not longer than the part of it on disk")
                if response.status_code in TRANSIENT_STATUSES:
                    raise TransientError(f"{response.status_code} {response.reason}")
                if response.status_code not in (200, 206):
                    raise DownloadError(f"{response.status_code} {response.reason}")
                self._write(response)
        except (requests.RequestException, HTTPError) as error:
            raise TransientError(_reason(error)) from error

    def _headers(self) -> dict[str, str]:
        """Return the request headers, with a range if there is a part, and a way to detect that the file changed."""
        length = self._length()
        if length and self.remote.digest:  # compared at the end, so a mirror may send the rest
            return HEADERS | {"Range": f"bytes={length}-"}
        if length and self._validator_path.exists():
            # With If-Range, a server that has another version sends the whole file.
            return HEADERS | {"Range": f"bytes={length}-", "If-Range": self._validator_path.read_text()}
        return HEADERS

    def _write(self, response: requests.Response) -> None:
        start = self._length() if response.status_code == 206 else 0
        content_length = response.headers.get("Content-Length")
        total = start + int(content_length) if content_length else None
        if total is not None and self.remote.size not in (None, total):
            raise DownloadError(f"has {total} bytes, expected {self.remote.size}")
        # If-Range accepts a strong ETag, which begins with a quote, or the date of the last change.
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        with (
            self.part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=self.remote.name, unit="B", unit_scale=True, mininterval=1) as bar,
        ):
            # After the part is opened, so that old bytes never get the validator of another version.
            self._validator_path.unlink(missing_ok=True)
            if validator and not self.remote.digest:
                self._validator_path.write_text(validator)
            # Not `iter_content`, which would unpack a .tar.gz that a server labels "Content-Encoding: gzip".
            for block in response.raw.stream(BLOCK, decode_content=False):
                file.write(block)
                bar.update(len(block))


def _reason(error: BaseException) -> str:
    """Return the innermost message, such as "Connection refused"; requests and urllib3 wrap it several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__
