"""A web server on 127.0.0.1 that fails on demand, and that can stop and restart on one port."""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

BLOCK = 1 << 14  # bytes between two pauses of a slow response

Reply = tuple[int, Mapping[str, str], bytes]
Fallback = Callable[[str, str], Reply | None]


@dataclass
class Failure:
    """What goes wrong for the next `times` GET requests of a path; for all of them if None.

    `cut` bytes of the promised body are sent; `status` replaces the response; `no_range` sends the whole file whatever
    range is requested; `corrupt` flips the first byte of the file; `slow` is seconds after each `block` bytes of the
    body; `headers` are added; `chunked` sends the body in chunks instead of its length; `endless` sends it over and
    over, in place of the headers if "headers", in chunks if "body".
    """

    times: int | None = None
    cut: int | None = None
    status: int | None = None
    no_range: bool = False
    corrupt: bool = False
    slow: float = 0.0
    block: int = BLOCK
    chunked: bool = False
    endless: str | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Request:
    """A request as it came; header names are as they were sent."""

    method: str
    path: str
    headers: dict[str, str]


class Loopback:
    """Serves `files`, bytes by path ("/a.bin"), inside a `with` block.

    `headers` are more response headers by path; a value of None removes a default one (such as "ETag"). `fallback` is
    called with method and path for what is not in `files`; it returns (status, headers, body), or None for 404.
    `requests` lists all requests; `sent` has the body bytes by path. A range is "N-", "N-M" or "-N".
    """

    def __init__(
        self,
        files: dict[str, bytes],
        headers: Mapping[str, Mapping[str, str | None]] | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        self.files = files
        self.headers = dict(headers or {})
        self.fallback = fallback
        self.requests: list[Request] = []
        self.sent: dict[str, int] = {}
        self._failures: dict[str, list[Failure]] = {}
        self._port = 0
        self._server: _Server | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Loopback":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; from the second time on, at the port of the first."""
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        self._server.thread.start()

    def stop(self) -> None:
        """Break all connections and refuse new ones, as a server that crashes."""
        if self._server:
            self._server.die()
            self._server = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def url(self, path: str) -> str:
        return self.address + path

    def fail(self, path: str, **settings) -> None:
        """Add a `Failure`; those of one path take turns, each for its `times`."""
        self._failures.setdefault(path, []).append(Failure(**settings))

    def count(self, path: str, method: str = "GET") -> int:
        return sum((request.path, request.method) == (path, method) for request in self.requests)

    def ranges(self, path: str) -> list[str | None]:
        """Return the Range header of each GET request of `path`, None for a request without."""
        matching = [request for request in self.requests if (request.path, request.method) == (path, "GET")]
        return [request.headers.get("Range") for request in matching]

    def record(self, request: Request) -> Failure:
        """Append a request to the list; return the failure that its response has."""
        with self._lock:
            self.requests.append(request)
            waiting = self._failures.get(request.path, []) if request.method == "GET" else []
            if not waiting:
                return Failure()
            failure = waiting[0]
            if failure.times is not None:
                failure.times -= 1
                if failure.times <= 0:
                    waiting.pop(0)
            return failure

    def content(self, path: str) -> bytes | None:
        return self.files.get(path, self.files.get(unquote(path)))


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
        """Print nothing: clients that hang up and broken connections are what is tested."""

    def die(self) -> None:
        self.dead.set()
        self.shutdown()
        self.thread.join()
        with self._lock:
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def _respond(self, with_body: bool) -> None:
        site = self.server.site
        path = self.path.partition("?")[0]
        failure = site.record(Request(self.command, path, dict(self.headers)))
        status, headers, body = self._reply(path, failure)
        extra = {**site.headers.get(path, {}), **(failure.headers or {})}
        is_chunked = failure.chunked or failure.endless == "body"
        if is_chunked:
            extra |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        headers = {"Content-Length": str(len(body)), **headers, **extra}
        self.send_response(status)
        if failure.endless == "headers":
            self.flush_headers()
            self.wfile.write(b"X-Header: ")
            self._send(path, body, failure)
            return
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if with_body:
            self._send(path, body, failure, is_chunked)

    def _reply(self, path: str, failure: Failure) -> Reply:
        if failure.status is not None:
            return failure.status, {}, b"failure\n"
        content = self.server.site.content(path)
        if content is not None:
            return self._part(content, failure, path)
        fallback = self.server.site.fallback
        return (fallback(self.command, path) if fallback else None) or (404, {}, b"not here\n")

    def _part(self, content: bytes, failure: Failure, path: str) -> Reply:
        extra = self.server.site.headers.get(path, {})
        tag = extra.get("ETag", '"' + hashlib.md5(content, usedforsecurity=False).hexdigest() + '"')
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        if failure.corrupt and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, tag, extra.get("Last-Modified"))
        if failure.no_range or not span or not any(span.groups()) or not unchanged:
            return 200, headers, content
        if span[1]:
            start = int(span[1])
            end = min(int(span[2] or len(content)), len(content) - 1)
        else:
            start = max(len(content) - int(span[2]), 0)
            end = len(content) - 1
        if start >= len(content):
            return 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b""
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return 206, headers, content[start : end + 1]

    def _send(self, path: str, body: bytes, failure: Failure, is_chunked: bool = False) -> None:
        if failure.cut is not None:
            body = body[: failure.cut]
            self.close_connection = True
        is_first = True
        while is_first or failure.endless:
            is_first = False
            for start in range(0, len(body), failure.block):
                block = body[start : start + failure.block]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if is_chunked else block)
                self.server.site.sent[path] = self.server.site.sent.get(path, 0) + len(block)
                if failure.slow and self.server.dead.wait(failure.slow):
                    return
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
