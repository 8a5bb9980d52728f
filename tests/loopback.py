"""A web server on 127.0.0.1 with faults on demand; it dies and comes back on one port."""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BLOCK = 1 << 14  # bytes between two pauses of a slow answer

Reply = tuple[int, Mapping[str, str], bytes]
Fallback = Callable[[str, str], Reply | None]


@dataclass
class Fault:
    """What goes wrong for the next `times` GET requests of a path, for ever where that is None.

    `cut` bytes of the promised body are sent; `status` is answered instead; `no_range` sends the whole, whatever part
    is asked for; `corrupt` flips the first byte of the file; `slow` is seconds after each `BLOCK`; `headers` are added.
    """

    times: int | None = None
    cut: int | None = None
    status: int | None = None
    no_range: bool = False
    corrupt: bool = False
    slow: float = 0.0
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Seen:
    """A request as it came; header names are as they were sent."""

    method: str
    path: str
    headers: dict[str, str]


class Loopback:
    """Serves `files`, bytes by path ("/a.bin") or a folder, while it is entered.

    `headers` are more response headers by path; a value of None leaves out one that would be sent (as "ETag").
    `fallback` is asked with method and path for what is not in `files` and answers (status, headers, body), or None
    for 404. `seen` has all requests and `sent` the body bytes by path. Ranges are one "N-", "N-M" or "-N".
    """

    def __init__(
        self,
        files: dict[str, bytes] | Path,
        headers: Mapping[str, Mapping[str, str | None]] | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        self.files, self.headers, self.fallback = files, dict(headers or {}), fallback
        self.seen: list[Seen] = []
        self.sent: dict[str, int] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._port = 0
        self._server: _Server | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Loopback":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, from the second time on at the port of the first."""
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        self._server.thread.start()

    def stop(self) -> None:
        """Break all connections and refuse new ones, as a server does that dies; nothing if it has."""
        if self._server:
            self._server.die()
            self._server = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def url(self, path: str) -> str:
        return self.address + path

    def fault(self, path: str, **what) -> None:
        """Add a `Fault`; those of one path are taken in turn, each for its `times`."""
        self._faults.setdefault(path, []).append(Fault(**what))

    def count(self, path: str, method: str = "GET") -> int:
        return sum((one.path, one.method) == (path, method) for one in self.seen)

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each GET request of `path`, None where there was none."""
        return [one.headers.get("Range") for one in self.seen if (one.path, one.method) == (path, "GET")]

    def note(self, seen: Seen) -> Fault:
        """Keep a request; the fault that its answer has."""
        with self._lock:
            self.seen.append(seen)
            waiting = self._faults.get(seen.path, []) if seen.method == "GET" else []
            if not waiting:
                return Fault()
            fault = waiting[0]
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    waiting.pop(0)
            return fault

    def content(self, path: str) -> bytes | None:
        if isinstance(self.files, dict):
            return self.files.get(path, self.files.get(unquote(path)))
        file = (self.files / unquote(path).lstrip("/")).resolve()
        return file.read_bytes() if file.is_relative_to(self.files.resolve()) and file.is_file() else None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 32

    def __init__(self, site: Loopback, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.site = site
        self.dead = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request, client_address) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that hang up and connections that are broken are what is tested."""

    def die(self) -> None:
        self.dead.set()
        self.shutdown()
        self.thread.join()
        with self._lock:
            for one in self._open:
                one.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        site = self.server.site
        path = self.path.partition("?")[0]
        fault = site.note(Seen(self.command, path, dict(self.headers)))
        status, headers, body = self._reply(path, fault)
        headers = {"Content-Length": str(len(body)), **headers, **site.headers.get(path, {}), **(fault.headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if with_body:
            self._send(path, body, fault)

    def _reply(self, path: str, fault: Fault) -> Reply:
        if fault.status is not None:
            return fault.status, {}, b"fault\n"
        content = self.server.site.content(path)
        if content is not None:
            return self._part(content, fault, path)
        fallback = self.server.site.fallback
        return (fallback(self.command, path) if fallback else None) or (404, {}, b"not here\n")

    def _part(self, content: bytes, fault: Fault, path: str) -> Reply:
        extra = self.server.site.headers.get(path, {})
        tag = extra.get("ETag", '"' + hashlib.md5(content, usedforsecurity=False).hexdigest() + '"')
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        if fault.corrupt and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, tag, extra.get("Last-Modified"))
        if fault.no_range or not asked or not any(asked.groups()) or not same:
            return 200, headers, content
        if asked[1]:
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        else:
            start, end = max(len(content) - int(asked[2]), 0), len(content) - 1
        if start >= len(content):
            return 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b""
        span = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return 206, {**headers, **span}, content[start : end + 1]

    def _send(self, path: str, body: bytes, fault: Fault) -> None:
        if fault.cut is not None:
            body = body[: fault.cut]
            self.close_connection = True
        for start in range(0, len(body), BLOCK):
            block = body[start : start + BLOCK]
            self.wfile.write(block)
            self.server.site.sent[path] = self.server.site.sent.get(path, 0) + len(block)
            if fault.slow and self.server.dead.wait(fault.slow):
                return
