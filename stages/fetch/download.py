"""A file from the web, fetched once: resumed where it was cut off, and checked before it takes its place."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType

import requests
from filelock import FileLock, Timeout
from requests import exceptions as faults
from tqdm import tqdm
from urllib3.exceptions import HTTPError, TimeoutError

from stages.core.atomic import write_text
from stages.core.stage import InputError
from stages.params.remote_file import RemoteFile

CONNECT_SECONDS = 10
READ_SECONDS = 60  # without one byte
HEAD_SECONDS = 5
ATTEMPTS = 5  # without progress, per source
PAUSE = 1.0  # seconds after the first of them; doubles from one to the next
LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for
BLOCK = 1 << 16  # bytes; what a broken connection may lose

NO_MIRRORS: Mapping[str, str] = MappingProxyType({})
PASSING = (408, 425, 429)  # and 5xx: statuses that may go away
HOPELESS = (faults.InvalidURL, faults.InvalidSchema, faults.MissingSchema, faults.TooManyRedirects)
PLAIN = {"Accept-Encoding": "identity"}  # Range and digests are about the file's own bytes


class _PassingError(Exception):
    """A fault that may go away when asked again, after `pause` seconds if the server named some."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _RefusedError(Exception):
    """This source will not do; the next one may."""


def download_file(
    remote: RemoteFile, folder: Path, mirrors: Mapping[str, str] = NO_MIRRORS, label: str | None = None
) -> Path:
    """The path of `remote` in `folder`, downloaded where it is not there yet; `label` goes on the progress bar.

    `mirrors` has URL prefixes and what may stand for them; they are asked in its order, after the URL itself.
    Raises `InputError` for a file with a wrong digest or size, no source that has it, or no room on the disk.
    """
    target = folder / remote.name
    if _in_place(remote, target):  # needs no lock (files get their names when whole), so the folder may be read-only
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not _in_place(remote, target):  # another process may have been faster
                _download(remote, target, mirrors, label or remote.name)
    except OSError as fault:  # of the disk: those of the network were caught below
        told = f"{fault.strerror or fault}: {fault.filename}" if fault.filename else fault.strerror or fault
        raise InputError(f"{target} cannot be written ({told}); what came so far is kept") from None
    return target


def remote_size(remote: RemoteFile, mirrors: Mapping[str, str] = NO_MIRRORS) -> int | None:
    """Bytes of `remote` as it or the first server that answers says; None where nobody does within seconds."""
    if remote.size is not None:
        return remote.size
    for url in _sources(remote.url, mirrors):
        with suppress(requests.RequestException, HTTPError):
            answer = requests.head(url, headers=PLAIN, timeout=HEAD_SECONDS, allow_redirects=True)
            length = answer.headers.get("Content-Length", "")
            if answer.status_code == 200 and length.isdecimal():
                return int(length)
    return None


def _in_place(remote: RemoteFile, target: Path) -> bool:
    """Whether the file is there. Raises `InputError` where another one has its name."""
    if not target.exists():
        return False
    if not target.is_file():
        raise InputError(f"{target}: not a file; {remote.url} is to be downloaded there")
    state = target.stat()
    if remote.size not in (None, state.st_size):
        raise InputError(_unlike(target, f"{state.st_size} bytes", f"{remote.size} bytes"))
    receipt = _receipt(target)
    # Without a digest to go by, the file is to stay what it was when it came
    algorithm, expected = remote.digest or ("sha256", receipt.get("sha256"))
    found = receipt
    if algorithm not in receipt or (receipt.get("size"), receipt.get("mtime_ns")) != (state.st_size, state.st_mtime_ns):
        found = _digests(target, algorithm)
    if remote.digest is None and receipt.get("url") not in (None, remote.url):
        raise InputError(f"{target} came from {receipt['url']}; remove it to download {remote.url}")
    if expected not in (None, found[algorithm]):
        raise InputError(_unlike(target, f"{algorithm} {found[algorithm]}", f"{algorithm} {expected}"))
    if found is not receipt:
        _write_receipt(target, found, receipt.get("url"))
    return True


def _unlike(target: Path, found: str, expected: str) -> str:
    return f"{target} has {found}, expected {expected}; remove it to download it again"


def _receipt_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.receipt.json")


def _receipt(target: Path) -> dict:
    """Digests of the file when it was last read whole, with the size and time by which it is known again."""
    try:
        receipt = json.loads(_receipt_path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return receipt if isinstance(receipt, dict) else {}


def _write_receipt(target: Path, digests: dict[str, str], url: str | None) -> None:
    state = target.stat()
    receipt = {**digests, "size": state.st_size, "mtime_ns": state.st_mtime_ns, "url": url}
    with suppress(OSError):  # it only saves time: a folder that is read-only is fine
        write_text(_receipt_path(target), json.dumps(receipt, indent=2, sort_keys=True) + "\n")


def _hashers(algorithm: str) -> dict:
    return {one: hashlib.new(one, usedforsecurity=False) for one in sorted({"sha256", algorithm})}


def _read_into(hashers: dict, path: Path) -> None:
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc=f"check {path.name}", unit="B", unit_scale=True, mininterval=1, leave=False) as bar,
    ):
        while block := file.read(1 << 20):
            for hasher in hashers.values():
                hasher.update(block)
            bar.update(len(block))


def _digests(path: Path, algorithm: str) -> dict[str, str]:
    hashers = _hashers(algorithm)
    _read_into(hashers, path)
    return {one: hasher.hexdigest() for one, hasher in hashers.items()}


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold `NAME.lock`. It stays: one that is removed while another process waits for it would lock nothing."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target}: another process is fetching it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Part:
    """What is there of a file so far: its length in bytes, its digests, and the version of the URL that it is of."""

    def __init__(self, target: Path, algorithm: str, bar: tqdm) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._origin_path = target.with_name(f"{target.name}.part.json")
        self._algorithm, self._bar = algorithm, bar
        self.restarts, self.length, self.hashers = 0, 0, _hashers(algorithm)
        self.origin = self._read_origin()
        if self.path.exists():
            _read_into(self.hashers, self.path)
            self.length = bar.initial = bar.n = self.path.stat().st_size

    def _read_origin(self) -> dict:
        try:
            origin = json.loads(self._origin_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return origin if isinstance(origin, dict) else {}

    def note_origin(self, url: str, validator: str | None) -> None:
        self.origin = {"url": url, "validator": validator}
        write_text(self._origin_path, json.dumps(self.origin) + "\n")

    def validator_at(self, url: str) -> str | None:
        """The ETag or date that makes a server send the rest only if it still has the file of which this is a part."""
        return self.origin.get("validator") if self.origin.get("url") == url else None

    def append(self, file, block: bytes) -> None:
        file.write(block)
        for hasher in self.hashers.values():
            hasher.update(block)
        self.length += len(block)
        self._bar.update(len(block))

    def expect(self, total: int | None) -> None:
        self._bar.total = total
        self._bar.refresh()

    def restart(self) -> None:
        """Drop the bytes, if there are any."""
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)
        if self.length:
            self.restarts += 1
            self.length, self.origin, self.hashers = 0, {}, _hashers(self._algorithm)
            self._bar.initial = 0
            self._bar.reset()

    def digests(self) -> dict[str, str]:
        return {one: hasher.hexdigest() for one, hasher in self.hashers.items()}

    def take_place(self, target: Path, url: str) -> None:
        with self.path.open("ab") as file:
            os.fsync(file.fileno())  # a receipt must not outlive bytes that a power cut took
        self.path.replace(target)
        self._origin_path.unlink(missing_ok=True)
        _write_receipt(target, self.digests(), url)


def _sources(url: str, mirrors: Mapping[str, str]) -> list[str]:
    others = [there + url.removeprefix(here) for here, there in mirrors.items() if url.startswith(here)]
    return list(dict.fromkeys([url, *others]))


def _download(remote: RemoteFile, target: Path, mirrors: Mapping[str, str], label: str) -> None:
    algorithm = remote.digest[0] if remote.digest else "sha256"
    reasons = []
    with tqdm(total=remote.size, desc=label, unit="B", unit_scale=True, unit_divisor=1024, mininterval=1) as bar:
        part = _Part(target, algorithm, bar)
        _ensure_room(part, remote.size)
        for url in _sources(remote.url, mirrors):
            try:
                _take_from(url, part, remote)
            except _RefusedError as fault:
                reasons.append(f"{url}: {fault}")
                continue
            return part.take_place(target, remote.url)
    raise InputError(
        f"{remote.name} could not be downloaded ({'; '.join(reasons)}); "
        f"fetch it by hand ({remote.expected}) and put it at {target}"
    )


def _ensure_room(part: _Part, size: int | None) -> None:
    needed = (size or 0) - part.length
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise InputError(f"{part.path.parent}: {needed} bytes are needed for {part.path.stem}, {free} bytes are free")


def _take_from(url: str, part: _Part, remote: RemoteFile) -> None:
    """Complete `part` from `url` and check it; a part that is wrong is removed. Raises `_RefusedError`."""
    inherited = part.length > 0
    _read_whole(url, part, remote)
    wrong = _mismatch(part, remote)
    if wrong and inherited:  # the fault may lie in bytes of another day or server: once more, all from this one
        part.restart()
        _read_whole(url, part, remote)
        wrong = _mismatch(part, remote)
    if wrong:
        part.restart()
        raise _RefusedError(wrong)


def _mismatch(part: _Part, remote: RemoteFile) -> str | None:
    if remote.size not in (None, part.length):
        return f"sent {part.length} bytes, expected {remote.size}"
    algorithm, expected = remote.digest or ("sha256", None)
    found = part.digests()[algorithm]
    return None if expected in (None, found) else f"sent {algorithm} {found}, expected {expected}"


def _read_whole(url: str, part: _Part, remote: RemoteFile) -> None:
    """Ask `url` until `part` is complete. Raises `_RefusedError`, at the latest after `ATTEMPTS` without progress."""
    spent, restarts_before = 0, part.restarts
    while True:
        length, restarts = part.length, part.restarts
        try:
            return _request(url, part, remote)
        except _PassingError as fault:
            grew = part.restarts == restarts and part.length > length
            # Restarts are never forgiven: a server that cuts off and starts over would be asked for ever
            spent = part.restarts - restarts_before if grew else spent + 1
            if spent >= ATTEMPTS:
                raise _RefusedError(f"{fault} ({ATTEMPTS} attempts)") from None
            pause = min(max(PAUSE * 2 ** max(spent - 1, 0), fault.pause), LONGEST_PAUSE)
            tqdm.write(f"{remote.name}: {fault}; asking again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


def _request(url: str, part: _Part, remote: RemoteFile) -> None:
    """One request for what is missing, written as it comes. Raises `_PassingError` or `_RefusedError`."""
    headers = PLAIN | _range(url, part, remote)
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with _network_faults(), requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if _is_complete(response, part):
            return
        total = _begin(url, response, part, remote)
        with part.path.open("ab") as file:
            for block in response.raw.stream(BLOCK, decode_content=False):
                part.append(file, block)
                if total is not None and part.length > total:
                    break
    if total is not None and part.length > total:
        part.restart()
        raise _RefusedError(f"sends more than {total} bytes")
    if total is not None and part.length < total:
        raise _PassingError(f"cut off after {part.length} of {total} bytes")


def _range(url: str, part: _Part, remote: RemoteFile) -> dict[str, str]:
    validator = part.validator_at(url)
    if not part.length or (validator is None and remote.digest is None):
        return {}  # nothing would tell if the rest were another file's
    # With a digest, a part goes on from a mirror too; one that does not fit is found out at the end
    return {"Range": f"bytes={part.length}-"} | ({"If-Range": validator} if validator else {})


@contextmanager
def _network_faults() -> Iterator[None]:
    """Tell faults of the network from those of the disk, which are `OSError` as well."""
    try:
        yield
    except HOPELESS as fault:
        raise _RefusedError(_short(fault)) from None
    except (requests.RequestException, HTTPError) as fault:
        raise _PassingError(_short(fault)) from None


def _short(fault: Exception) -> str:
    """The innermost reason, without the objects in which the libraries wrap it."""
    if isinstance(fault, requests.Timeout | TimeoutError):
        return "no answer in time"
    text = str(fault)
    if "IncompleteRead" in text:
        return "connection closed before the end"
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return system[1] if system else text.rpartition(": ")[2].strip("'\"() ")[:100] or type(fault).__name__


def _is_complete(response: requests.Response, part: _Part) -> bool:
    """Whether nothing is missing, which a server says by 416. Raises `_PassingError` where the part is too long."""
    if response.status_code != 416 or "Range" not in response.request.headers:
        return False
    if response.headers.get("Content-Range", "").endswith(f"/{part.length}"):
        return True
    part.restart()
    raise _PassingError("has another length than the part of it that was there")


def _begin(url: str, response: requests.Response, part: _Part, remote: RemoteFile) -> int | None:
    """Make `part` ready for what `response` brings; the bytes it will have in the end, where that is known."""
    status = response.status_code
    if status in PASSING or status >= 500:
        raise _PassingError(f"{status} {response.reason}", _retry_after(response))
    if status not in (200, 206):
        raise _RefusedError(f"{status} {response.reason}")
    start, total = _extent(response)
    if remote.size is not None and total not in (None, remote.size):
        raise _RefusedError(f"has {total} bytes, expected {remote.size}")  # before a good part makes way for it
    if status == 200:
        part.restart()
    elif start != part.length or _changed(response, part):
        part.restart()
        raise _PassingError("sent another part than was asked for")
    total = total if remote.size is None else remote.size
    _ensure_room(part, total)
    part.note_origin(url, _validator(response))
    part.expect(total)
    return total


def _extent(response: requests.Response) -> tuple[int | None, int | None]:
    """Where the body starts in the file, and how long the file is."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(response: requests.Response) -> str | None:
    """A strong ETag, or the date: If-Range may have no weak one."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _changed(response: requests.Response, part: _Part) -> bool:
    """Whether a server sent the rest of another version, not heeding If-Range."""
    asked = response.request.headers.get("If-Range")
    header = "ETag" if asked and asked.startswith('"') else "Last-Modified"
    return asked is not None and response.headers.get(header, asked) != asked


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server wants to be left alone, 0 where it does not say."""
    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError, TypeError):
        return (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
    return 0.0
