"""A file arrives whole and once, whatever the network does, and a fault is told in one line."""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from loopback import Loopback

from stages.core.stage import InputError
from stages.fetch import download
from stages.fetch.download import RemoteFile, download_file, remote_size

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
PATH = "/data/set.bin"


@pytest.fixture(autouse=True)
def shrunk(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.3)
    monkeypatch.setattr(download, "READ_SECONDS", 5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with Loopback({PATH: CONTENT}) as running:
        yield running


def remote(server, fragment="", path=PATH):
    return RemoteFile.parse(server.url(path) + fragment)


def refusal(*arguments, **named):
    with pytest.raises(InputError) as caught:
        download_file(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(one.name for one in folder.iterdir())


KEPT = ["set.bin", "set.bin.lock", "set.bin.receipt.json"]


def test_a_remote_is_one_string():
    known = RemoteFile.parse(f"https://a.org/x/a%20b.zip?v=1#sha256={SHA256.upper()}&size=12&md5={MD5}")
    assert known == RemoteFile("https://a.org/x/a%20b.zip?v=1", ("sha256", SHA256), 12, "a b.zip")
    assert RemoteFile.parse(f"http://a.org/x#md5={MD5}").digest == ("md5", MD5)
    assert RemoteFile.parse("http://a.org/x") == RemoteFile("http://a.org/x", None, None, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://a.org/x", "not an http or https URL"),
        ("https:///x", "not an http or https URL"),
        ("https://a.org/", "no file name"),
        ("https://a.org", "no file name"),
        ("https://a.org/x/..%2Fy", "no file name"),
        ("https://a.org/..", "no file name"),
        ("https://a.org/x#sha1=12", "'sha1' is unknown"),
        ("https://a.org/x#size=1&size=1", "'size' is unknown or repeated"),
        ("https://a.org/x#md5=12", "md5 is '12', expected 32 hexadecimal digits"),
        (f"https://a.org/x#sha256={'g' * 64}", "expected 64 hexadecimal digits"),
        ("https://a.org/x#size=-1", "expected a number of bytes"),
    ],
)
def test_a_remote_that_is_none_is_named(text, said):
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        RemoteFile.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("fragment", ["", f"#md5={MD5}", f"#sha256={SHA256}&size={len(CONTENT)}"])
def test_a_file_is_fetched_once(server, tmp_path, fragment):
    asked = remote(server, fragment)
    path = download_file(asked, tmp_path / "made")
    assert path == tmp_path / "made/set.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == KEPT
    server.stop()
    assert download_file(asked, tmp_path / "made") == path
    assert server.count(PATH) == 1


def test_what_was_cut_off_goes_on_where_it_ended(server, tmp_path):
    server.fault(PATH, cut=100_000, times=1)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [None, "bytes=100000-"]
    assert "If-Range" in server.seen[1].headers


def test_many_cuts_are_no_matter_as_long_as_bytes_come(server, tmp_path):
    server.fault(PATH, cut=30_000, times=9)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 10


def test_a_server_that_dies_and_comes_back_costs_only_time(server, tmp_path):
    server.fault(PATH, slow=0.03)

    def restart():
        while server.sent.get(PATH, 0) < 100_000:
            time.sleep(0.005)
        server.stop()
        time.sleep(0.03)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert download_file(remote(server, f"#sha256={SHA256}"), tmp_path).read_bytes() == CONTENT
    finally:
        thread.join()
    first, second = server.ranges(PATH)
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) < len(CONTENT)


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(server, tmp_path):
    server.fault(PATH, slow=0.1, times=1)
    code = (
        "import sys; from pathlib import Path; from stages.fetch.download import *; "
        "download_file(RemoteFile.parse(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url(PATH), str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    part = tmp_path / "set.bin.part"
    while not part.exists() or part.stat().st_size < 60_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = part.stat().st_size
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [None, f"bytes={there}-"]
    assert names(tmp_path) == KEPT


def broken_off(server, folder, fragment="", at=100_000):
    """Fetch until the first `at` bytes are there, then have the server refuse."""
    server.fault(PATH, cut=at, times=1)
    server.fault(PATH, status=404, times=1)
    refusal(remote(server, fragment), folder)
    assert (folder / "set.bin.part").stat().st_size == at


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, tmp_path):
    broken_off(server, tmp_path)
    server.files[PATH] = OTHER
    assert download_file(remote(server), tmp_path).read_bytes() == OTHER


def test_a_server_that_does_not_heed_if_range_is_found_out(server, tmp_path):
    server.headers[PATH] = {"ETag": '"1"'}
    broken_off(server, tmp_path)
    server.files[PATH] = OTHER
    server.fault(PATH, headers={"ETag": '"2"'}, times=1)  # 206, though another version
    assert download_file(remote(server), tmp_path).read_bytes() == OTHER


@pytest.mark.parametrize("fragment", ["", f"#md5={MD5}"])
def test_without_any_version_only_a_digest_lets_a_part_go_on(server, tmp_path, fragment):
    server.headers[PATH] = {"ETag": None}
    broken_off(server, tmp_path, fragment)
    assert download_file(remote(server, fragment), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH)[-1] == ("bytes=100000-" if fragment else None)


def test_a_damaged_part_is_fetched_again_from_its_start(server, tmp_path):
    broken_off(server, tmp_path, f"#md5={MD5}")
    (tmp_path / "set.bin.part").write_bytes(bytes(100_000))
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH)[-2:] == ["bytes=100000-", None]


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    broken_off(server, tmp_path, f"#md5={MD5}")
    part = tmp_path / "set.bin.part"
    part.write_bytes(CONTENT)  # killed before it took its place
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    (tmp_path / "set.bin").unlink()
    part.write_bytes(CONTENT + b"more")
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH)[-3:] == ["bytes=300000-", "bytes=300004-", None]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.fault(PATH, cut=100_000, times=1)
    server.fault(PATH, no_range=True)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 2


@pytest.mark.parametrize("fault", [{"cut": 0}, {"cut": 1000, "no_range": True}])
def test_what_is_cut_off_for_ever_is_given_up(server, tmp_path, fault):
    server.fault(PATH, **fault)
    said = refusal(remote(server), tmp_path)
    assert f"({download.ATTEMPTS} attempts)" in said
    assert download.ATTEMPTS <= server.count(PATH) <= download.ATTEMPTS + 1
    assert not (tmp_path / "set.bin").exists()


def test_a_wrong_digest_is_named_and_nothing_stays(server, tmp_path):
    server.files[PATH] = OTHER
    said = refusal(remote(server, f"#md5={MD5}"), tmp_path)
    assert f"{server.url(PATH)}: sent md5 {hashlib.md5(OTHER).hexdigest()}, expected {MD5}" in said
    assert names(tmp_path) == ["set.bin.lock"]


def test_a_mirror_is_asked_where_the_source_is_wrong(server, tmp_path):
    server.fault(PATH, corrupt=True)
    server.files["/mirror/set.bin"] = CONTENT
    mirrors = {"https://elsewhere.org/": "http://127.0.0.1:1/", server.url("/data/"): server.url("/mirror/")}
    assert download_file(remote(server, f"#sha256={SHA256}"), tmp_path, mirrors).read_bytes() == CONTENT
    assert [one.path for one in server.seen] == [PATH, "/mirror/set.bin"]


def test_a_mirror_goes_on_from_the_part_of_a_source_that_failed(server, tmp_path):
    server.files["/mirror/set.bin"] = CONTENT
    server.fault(PATH, cut=100_000, times=1)
    server.fault(PATH, status=403)
    mirrors = {server.url("/data/"): server.url("/mirror/")}
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path, mirrors).read_bytes() == CONTENT
    assert server.ranges("/mirror/set.bin") == ["bytes=100000-"]


def test_another_size_is_refused_before_a_byte_is_written(server, tmp_path):
    broken_off(server, tmp_path)
    assert "has 300000 bytes, expected 299999" in refusal(remote(server, "#size=299999"), tmp_path)
    assert (tmp_path / "set.bin.part").stat().st_size == 100_000


def test_what_is_not_there_is_told_at_once(server, tmp_path):
    gone = remote(server, f"#md5={MD5}", "/gone/set.bin")
    said = refusal(gone, tmp_path, {server.url("/gone/"): server.url("/away/")})
    for part in ("set.bin", gone.url, server.url("/away/set.bin"), "404 Not Found", MD5, str(tmp_path / "set.bin")):
        assert part in said
    assert len(server.seen) == 2


def test_without_a_server_one_line_says_what_to_do(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        asked = RemoteFile.parse(f"http://127.0.0.1:{free.getsockname()[1]}/a/b.zip#md5={MD5}&size=7")
        said = refusal(asked, tmp_path)
        assert remote_size(RemoteFile.parse(asked.url)) is None
    assert said == (
        f"b.zip could not be downloaded ({asked.url}: Connection refused (5 attempts)); "
        f"fetch it by hand (md5 {MD5}, 7 bytes) and put it at {tmp_path / 'b.zip'}"
    )


def test_a_busy_server_is_asked_again_when_it_says(server, tmp_path):
    server.fault(PATH, status=503, times=2)
    server.fault(PATH, status=429, times=1, headers={"Retry-After": "3600"})  # a minute at most, here 0.3 s
    start = time.monotonic()
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert 0.3 < time.monotonic() - start < 3
    assert server.count(PATH) == 4


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    server.fault(PATH, slow=1, times=1)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 2


def test_a_file_put_there_by_hand(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(CONTENT)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path) == download_file(remote(server), tmp_path)
    (tmp_path / "set.bin.receipt.json").unlink()
    (tmp_path / "set.bin").write_bytes(OTHER)
    said = refusal(remote(server, f"#md5={MD5}"), tmp_path)
    assert str(tmp_path / "set.bin") in said
    assert hashlib.md5(OTHER).hexdigest() in said
    assert f"expected md5 {MD5}; remove it to download it again" in said
    assert "300000 bytes, expected 5 bytes" in refusal(remote(server, "#size=5"), tmp_path)
    assert download_file(remote(server), tmp_path).read_bytes() == OTHER  # nothing is known of it
    assert server.seen == []


def test_a_file_that_changed_since_it_came_is_read_again(server, tmp_path, monkeypatch):
    path = download_file(remote(server), tmp_path)
    read = []
    digests = download._digests
    monkeypatch.setattr(download, "_digests", lambda *what: read.append(what) or digests(*what))
    download_file(remote(server, f"#sha256={SHA256}"), tmp_path)
    assert read == []
    os.utime(path, ns=(1, 1))
    download_file(remote(server), tmp_path)
    download_file(remote(server), tmp_path)
    assert len(read) == 1
    path.write_bytes(OTHER)
    assert SHA256 in refusal(remote(server), tmp_path)


def test_a_folder_that_is_read_only_is_fine_when_the_file_is_there(server, tmp_path, monkeypatch):
    (tmp_path / "set.bin").write_bytes(CONTENT)

    def denied(*_):
        raise PermissionError

    monkeypatch.setattr(download, "write_text", denied)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["set.bin"]


@pytest.mark.parametrize("fragment", ["", f"#size={len(CONTENT)}"])
def test_a_full_disk_is_told_before(server, tmp_path, monkeypatch, fragment):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=299_999))
    said = refusal(remote(server, fragment), tmp_path)
    assert "300000 bytes are needed for set.bin, 299999 bytes are free" in said
    assert names(tmp_path) == ["set.bin.lock"]


def test_a_disk_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(remote(server), tmp_path / "file/folder")


def both(work, *arguments):
    workers = [work(target=download_file, args=arguments) for _ in range(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    return workers


@pytest.mark.parametrize("work", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_two_at_once_fetch_it_once(server, tmp_path, work):
    server.fault(PATH, slow=0.01)
    workers = both(work, remote(server, f"#md5={MD5}"), tmp_path)
    assert [getattr(one, "exitcode", 0) for one in workers] == [0, 0]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.count(PATH) == 1


def test_the_size_is_known_from_the_string_or_the_server(server):
    assert remote_size(remote(server, "#size=5")) == 5
    assert remote_size(remote(server)) == 300_000
    gone = remote(server, path="/gone/set.bin")
    assert remote_size(gone) is None
    assert remote_size(gone, {server.url("/gone/"): server.url("/data/")}) == 300_000
    assert server.count(PATH, "HEAD") == 2
    assert server.count(PATH) == 0


def test_the_server_of_these_tests_serves_folders_and_what_a_fallback_makes_up(tmp_path):
    (tmp_path / "site/a b").mkdir(parents=True)
    (tmp_path / "site/a b/c").write_bytes(b"123")
    (tmp_path / "out").write_bytes(b"no")

    def hub(method, path):
        return (200, {"X-Repo-Commit": "abc"}, method.encode()) if path.startswith("/api") else None

    with Loopback(tmp_path / "site", {"/a%20b/c": {"X-More": "1"}}, hub) as server:
        for path, (status, body, header) in {
            "/a%20b/c": (200, b"123", ("X-More", "1")),
            "/../out": (404, b"not here\n", ("X-More", None)),
            "/api/models": (200, b"GET", ("X-Repo-Commit", "abc")),
        }.items():
            with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as raw:
                raw.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
                head, _, got = b"".join(iter(lambda raw=raw: raw.recv(4096), b"")).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status}".encode())
            assert got == body
            assert (f"{header[0]}: {header[1]}".encode() in head) == (header[1] is not None)
