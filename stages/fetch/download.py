"""Download a file once: resume it after a broken connection, verify it before use, reuse it offline.

A server can neither hold a download up for ever nor fill the disk: the rate has a minimum, the size a maximum.

A file is reused by its name. If its `RemoteFile` has a hash, the hash is checked each time; without one, the name is
trusted.
"""

import http.client
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from stages.core.messages import hide_credentials, quote_value
from stages.core.stage import InputError
from stages.params.remote_file import RemoteFile, with_credentials

TIMEOUT = (10, 60)  # seconds to connect; seconds without a byte
RESPONSE_TIMEOUT = 120  # seconds until the headers are complete, redirects included
HEAD_TIMEOUT = 5  # seconds
# Bytes per second, and the seconds over which they are measured. A slow line has 50 kB/s, at which VOC 2012 (2 GB)
# takes 11 hours; a fifth of that leaves room for others who use the line.
MIN_RATE = 10_000
RATE_WINDOW = 60.0
# Limits for a file of unknown size. 20 GB is ten times the largest file of the paper profile.
MAX_BYTES = 20 * 10**9
FREE_BYTES = 10**9  # stay free on the disk
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
                    errors.append(f"{hide_credentials(url)}: {error}")
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
        # A server may send any text as the length.
        with suppress(requests.RequestException, HTTPError, TransientError, ValueError):
            response = _send_request("HEAD", url, HEADERS, HEAD_TIMEOUT, HEAD_TIMEOUT)
            if response.ok and "Content-Length" in response.headers:
                return int(response.headers["Content-Length"])
    return None


def _urls(url: str, mirrors: Mapping[str, str] | None) -> list[str]:
    urls = [with_credentials(url)]
    for prefix, mirror in (mirrors or {}).items():
        if url.startswith(prefix):
            urls.append(with_credentials(mirror) + url.removeprefix(prefix))
    return urls


def _send_request(
    method: str, url: str, headers: Mapping[str, str], timeout: float | tuple[float, float], deadline: float
) -> requests.Response:
    """Return the response without its body; raise `TransientError` if its headers take more than `deadline` seconds.

    The timeout of requests is for every single byte of the headers.
    """
    future: Future[requests.Response] = Future()

    def send() -> None:
        try:
            future.set_result(
                requests.request(method, url, headers=headers, stream=True, timeout=timeout, allow_redirects=True)
            )
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=send, daemon=True).start()  # Python does not wait for a daemon at its exit
    try:
        return future.result(deadline)
    except TimeoutError:
        raise TransientError(f"no complete response within {deadline:g} s") from None


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
            start = time.monotonic()
            try:
                self._request(url)
                break
            except TransientError as error:
                # A part longer than ever is progress; a server without ranges may always break off at the same byte.
                # A few bytes per request are not.
                growth = self._length() - longest
                attempts = 1 if growth > MIN_RATE * (time.monotonic() - start) else attempts + 1
                longest = max(longest, self._length())
                if attempts == ATTEMPTS:
                    raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from error
                pause = PAUSE * 2 ** (attempts - 1)
                tqdm.write(f"{self.remote.name}: {error}; next attempt in {pause:g} s", file=sys.stderr)
                time.sleep(pause)
        self._validator_path.unlink(missing_ok=True)
        self.part.replace(output_file)

    def _remove_part(self) -> None:
        self._validator_path.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    @property
    def _validator_path(self) -> Path:
        return self.part.with_name(f"{self.part.name}.validator")

    def _length(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _request(self, url: str) -> None:
        """Send one request for the missing bytes and append them to the part."""
        try:
            with _send_request("GET", url, self._headers(), TIMEOUT, RESPONSE_TIMEOUT) as response:
                status = response.status_code
                # Not the server's words for it, which may be any text.
                reason = f"{status} {http.client.responses.get(status, '')}".strip()
                if status == 416:
                    self.part.unlink(missing_ok=True)  # not shorter than the file on the server: start over
                    raise TransientError("the file is not longer than the part of it on disk")
                if status in TRANSIENT_STATUSES:
                    raise TransientError(reason)
                if status not in (200, 206):
                    raise DownloadError(reason)
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
        content_length = response.raw.length_remaining  # checked by urllib3; None if the server does not say
        total = None if content_length is None else start + content_length
        max_bytes, reason = self._max_bytes()
        if total is not None and self.remote.size not in (None, total):
            raise DownloadError(f"has {total} bytes, expected {self.remote.size}")
        if total is not None and total > max_bytes:
            raise DownloadError(f"has {total} bytes, more than {max_bytes}, {reason}")
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
            length = start
            with _minimum_rate(response, lambda: bar.n):
                # `read1` returns what has arrived; `read` would wait for a full block. Not `iter_content`, which would
                # unpack a .tar.gz that a server labels "Content-Encoding: gzip".
                while length <= max_bytes and (block := response.raw.read1(BLOCK, decode_content=False)):
                    length += len(block)
                    if length <= max_bytes:
                        file.write(block)
                    bar.update(len(block))
        if length > max_bytes:
            self._remove_part()
            raise DownloadError(f"has more than {max_bytes} bytes, {reason}")
        if self.remote.size not in (None, length):
            raise TransientError(f"sent {length} of {self.remote.size} bytes")

    def _max_bytes(self) -> tuple[int, str]:
        """The largest size that the file may have, and what an error calls it."""
        if self.remote.size is not None:
            return self.remote.size, "its expected size"
        free = shutil.disk_usage(self.part.parent).free + self._length() - FREE_BYTES
        if free < MAX_BYTES:
            return max(free, 0), f"the most that fits on the disk with {FREE_BYTES} bytes left free"
        return MAX_BYTES, "the most for a file of unknown size; add '#size=BYTES' to its URL"


@contextmanager
def _minimum_rate(response: requests.Response, received: Callable[[], int]) -> Iterator[None]:
    """Raise `TransientError` if fewer than `MIN_RATE` bytes per second are received in a window of the body's reading.

    A thread watches and shuts the socket down: a server that sends byte by byte can keep the reader within one call.
    """
    done = threading.Event()
    too_slow = threading.Event()

    def watch() -> None:
        before = received()
        while not done.wait(RATE_WINDOW):
            now = received()
            if now - before < MIN_RATE * RATE_WINDOW:
                too_slow.set()
                with suppress(ValueError, OSError):  # the body has ended in this moment
                    response.raw.shutdown()
                return
            before = now

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except HTTPError:
        if not too_slow.is_set():
            raise
    finally:
        done.set()
    if too_slow.is_set():
        raise TransientError(f"slower than {MIN_RATE} bytes per second")


def _reason(error: BaseException) -> str:
    """Return the innermost message, such as "Connection refused"; requests and urllib3 wrap it several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    strerror = error.strerror if isinstance(error, OSError) else None
    text = strerror or str(error) or type(error).__name__
    return quote_value(hide_credentials(text))[1:-1]  # without the quotes; it may hold what the server sent
