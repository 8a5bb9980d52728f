"""A download is complete and correct whatever the network does, happens once, and fails with one line."""

import base64
import hashlib
import multiprocessing
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
from stages.fetch.download import download_file, remote_size
from stages.params.remote_file import RemoteFile, take_credentials

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "/data/set.bin"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", (5, 5))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with Loopback({PATH: CONTENT}) as running:
        yield running


def remote(server, fragment="", path=PATH):
    return RemoteFile.parse(server.url(path) + fragment)


def error_of(*arguments):
    with pytest.raises(InputError) as caught:
        download_file(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupt(server, folder, fragment="", at=100_000):
    """Download the first `at` bytes, then have the server refuse."""
    server.fail(PATH, cut=at, times=1)
    server.fail(PATH, status=404, times=1)
    error_of(remote(server, fragment), folder)
    assert (folder / "set.bin.part").stat().st_size == at


def test_the_notation_of_a_remote_file():
    parsed = RemoteFile.parse(f"https://a.org/x/a%20b.zip?v=1#sha256={SHA256.upper()}&size=12&md5={MD5}")
    assert parsed == RemoteFile("https://a.org/x/a%20b.zip?v=1", ("sha256", SHA256), 12, "a b.zip")
    assert RemoteFile.parse(f"http://a.org/x#md5={MD5}").digest == ("md5", MD5)
    assert RemoteFile.parse("http://a.org/x") == RemoteFile("http://a.org/x", None, None, "x")


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_a_wrong_notation_is_named(text, message):
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        RemoteFile.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("fragment", ["", f"#md5={MD5}", f"#sha256={SHA256}&size={len(CONTENT)}"])
def test_a_file_is_downloaded_once_and_reused_offline(server, tmp_path, fragment):
    file = remote(server, fragment)
    path = download_file(file, tmp_path / "new")
    assert path == tmp_path / "new/set.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["set.bin", "set.bin.lock"]
    server.stop()
    assert download_file(file, tmp_path / "new") == path
    assert server.count(PATH) == 1


@pytest.mark.parametrize("fragment", ["", f"#sha256={SHA256}"])
def test_a_broken_connection_is_resumed(server, tmp_path, fragment):
    server.fail(PATH, cut=100_000, times=1)
    assert download_file(remote(server, fragment), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [None, "bytes=100000-"]
    assert ("If-Range" in server.requests[1].headers) == (not fragment)


def test_any_number_of_broken_connections_is_resumed_if_each_made_progress(server, tmp_path):
    server.fail(PATH, cut=30_000, times=9)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 10


def test_a_server_that_restarts_costs_only_time(server, tmp_path):
    server.fail(PATH, slow=0.03)

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


def test_the_download_of_a_killed_process_is_resumed(server, tmp_path):
    server.fail(PATH, slow=0.1, times=1)
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
    length = part.stat().st_size
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [None, f"bytes={length}-"]
    assert "set.bin.part" not in names(tmp_path)


def test_a_file_that_changed_on_the_server_is_downloaded_from_its_start(server, tmp_path):
    interrupt(server, tmp_path)
    server.files[PATH] = OTHER
    assert download_file(remote(server), tmp_path).read_bytes() == OTHER


@pytest.mark.parametrize("fragment", ["", f"#md5={MD5}"])
def test_without_a_validator_only_a_hash_allows_resuming(server, tmp_path, fragment):
    server.headers[PATH] = {"ETag": None}
    interrupt(server, tmp_path, fragment)
    assert download_file(remote(server, fragment), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH)[-1] == ("bytes=100000-" if fragment else None)


def test_a_damaged_part_is_rejected_and_the_next_run_starts_over(server, tmp_path):
    interrupt(server, tmp_path, f"#md5={MD5}")
    (tmp_path / "set.bin.part").write_bytes(bytes(100_000))
    assert "does not match the known hash" in error_of(remote(server, f"#md5={MD5}"), tmp_path)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH)[-2:] == ["bytes=100000-", None]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_that_is_not_shorter_than_the_file_is_downloaded_again(server, tmp_path, extra):
    (tmp_path / "set.bin.part").write_bytes(CONTENT + extra)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [f"bytes={300_000 + len(extra)}-", None]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.fail(PATH, cut=100_000, times=1)
    server.fail(PATH, no_range=True)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 2


@pytest.mark.parametrize("failure", [{"cut": 0}, {"cut": 1000, "no_range": True}])
def test_a_connection_that_always_breaks_is_given_up(server, tmp_path, failure):
    server.fail(PATH, **failure)
    assert f"({download.ATTEMPTS} attempts)" in error_of(remote(server), tmp_path)
    assert download.ATTEMPTS <= server.count(PATH) <= download.ATTEMPTS + 1
    assert not (tmp_path / "set.bin").exists()


def test_a_wrong_hash_is_named_and_nothing_remains(server, tmp_path):
    server.files[PATH] = OTHER
    message = error_of(remote(server, f"#md5={MD5}"), tmp_path)
    assert server.url(PATH) in message
    assert f"expected md5:{MD5} but got {hashlib.md5(OTHER).hexdigest()}" in message
    assert names(tmp_path) == ["set.bin.lock"]


def test_a_mirror_replaces_a_source_with_a_wrong_hash(server, tmp_path):
    server.fail(PATH, corrupt=True)
    server.files["/mirror/set.bin"] = CONTENT
    mirrors = {"https://elsewhere.org/": "http://127.0.0.1:1/", server.url("/data/"): server.url("/mirror/")}
    assert download_file(remote(server, f"#sha256={SHA256}"), tmp_path, mirrors).read_bytes() == CONTENT
    assert [request.path for request in server.requests] == [PATH, "/mirror/set.bin"]


def test_a_mirror_continues_the_part_of_a_source_that_failed(server, tmp_path):
    server.files["/mirror/set.bin"] = CONTENT
    server.fail(PATH, cut=100_000, times=1)
    server.fail(PATH, status=403)
    mirrors = {server.url("/data/"): server.url("/mirror/")}
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path, mirrors).read_bytes() == CONTENT
    assert server.ranges("/mirror/set.bin") == ["bytes=100000-"]


def test_another_size_is_refused_before_a_byte_is_written(server, tmp_path):
    interrupt(server, tmp_path)
    assert "has 300000 bytes, expected 299999" in error_of(remote(server, "#size=299999"), tmp_path)
    assert (tmp_path / "set.bin.part").stat().st_size == 100_000


def test_the_error_names_all_sources_and_what_to_do(server, tmp_path):
    file = remote(server, f"#md5={MD5}&size=7", "/gone/set.bin")
    message = error_of(file, tmp_path, {server.url("/gone/"): server.url("/away/")})
    assert message == (
        f"set.bin could not be downloaded ({file.url}: 404 Not Found; {server.url('/away/set.bin')}: 404 Not Found); "
        f"download it by hand (md5 {MD5}, 7 bytes) and put it at {tmp_path / 'set.bin'}"
    )
    assert len(server.requests) == 2


def test_without_a_server_the_error_gives_the_reason(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        file = RemoteFile.parse(f"http://127.0.0.1:{unused.getsockname()[1]}/a/b.zip")
        assert f"({file.url}: Connection refused (5 attempts));" in error_of(file, tmp_path)
        assert remote_size(file) is None


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.fail(PATH, status=503, times=2)
    server.fail(PATH, status=429, times=1)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 4


def test_a_server_that_stops_sending_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.2))
    server.fail(PATH, slow=1, times=1)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.count(PATH) == 2


def test_a_file_on_disk_is_checked_before_use(server, tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(CONTENT)
    assert download_file(remote(server, f"#md5={MD5}"), tmp_path) == path
    path.write_bytes(OTHER)
    message = error_of(remote(server, f"#md5={MD5}"), tmp_path)
    actual = hashlib.md5(OTHER).hexdigest()
    assert message == f"{path} has md5 {actual}, expected md5 {MD5}; remove it to download it again"
    assert "300000 bytes, expected 5 bytes" in error_of(remote(server, "#size=5"), tmp_path)
    assert download_file(remote(server), tmp_path) == path  # without a hash, the name is trusted
    assert server.requests == []
    assert names(tmp_path) == ["set.bin"]  # no lock either: the folder may be read-only


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    message = error_of(remote(server), tmp_path / "file/folder")
    assert f"{tmp_path / 'file/folder/set.bin'} cannot be written (Not a directory)" in message


@pytest.mark.parametrize("worker", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_two_workers_download_a_file_once(server, tmp_path, worker):
    server.fail(PATH, slow=0.01)
    workers = [worker(target=download_file, args=(remote(server, f"#md5={MD5}"), tmp_path)) for _ in range(2)]
    for running in workers:
        running.start()
    for running in workers:
        running.join()
    assert [getattr(finished, "exitcode", 0) for finished in workers] == [0, 0]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.count(PATH) == 1


def test_the_size_comes_from_the_notation_or_a_server(server):
    assert remote_size(remote(server, "#size=5")) == 5
    assert remote_size(remote(server)) == 300_000
    gone = remote(server, path="/gone/set.bin")
    assert remote_size(gone) is None
    assert remote_size(gone, {server.url("/gone/"): server.url("/data/")}) == 300_000
    assert server.count(PATH, "HEAD") == 2
    assert server.count(PATH) == 0


@pytest.fixture
def short_window(monkeypatch):
    monkeypatch.setattr(download, "RATE_WINDOW", 0.1)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_drips_is_given_up_and_the_part_stays(server, tmp_path, short_window, chunked):
    server.fail(PATH, slow=0.02, block=1, chunked=chunked)
    message = error_of(remote(server), tmp_path)
    assert f"{server.url(PATH)}: slower than 10000 bytes per second ({download.ATTEMPTS} attempts)" in message
    assert server.count(PATH) == download.ATTEMPTS
    assert 0 < (tmp_path / "set.bin.part").stat().st_size < 100


def test_connections_that_break_after_a_few_bytes_are_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MIN_RATE", 10**6)
    server.fail(PATH, cut=10)
    assert f"({download.ATTEMPTS} attempts)" in error_of(remote(server), tmp_path)
    assert server.count(PATH) == download.ATTEMPTS


def test_a_slow_line_is_not_given_up(server, tmp_path, short_window):
    server.fail(PATH, slow=0.02, block=2500)  # at most 125 kB per second
    server.files[PATH] = CONTENT[:60_000]
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT[:60_000]
    assert server.count(PATH) == 1


def test_the_minimum_rate_lets_a_slow_line_pass():
    assert 5 * download.MIN_RATE <= 50_000
    assert download.RATE_WINDOW >= 60


def test_headers_without_end_are_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RESPONSE_TIMEOUT", 0.1)
    monkeypatch.setattr(download, "HEAD_TIMEOUT", 0.1)
    server.fail(PATH, endless="headers", slow=0.02, block=1)
    assert "no complete response within 0.1 s (5 attempts)" in error_of(remote(server), tmp_path)


@pytest.mark.parametrize("fragment", ["", f"#md5={MD5}"])
def test_an_endless_file_of_unknown_size_is_cut_off_and_removed(server, tmp_path, monkeypatch, fragment):
    monkeypatch.setattr(download, "MAX_BYTES", 1_000_000)
    server.fail(PATH, endless="body")
    message = error_of(remote(server, fragment), tmp_path)
    assert "has more than 1000000 bytes, the most for a file of unknown size; add '#size=BYTES' to its URL" in message
    assert names(tmp_path) == ["set.bin.lock"]
    assert server.count(PATH) == 1


def test_a_body_longer_than_the_expected_size_is_cut_off_and_removed(server, tmp_path):
    server.fail(PATH, endless="body")
    assert "has more than 300000 bytes, its expected size" in error_of(remote(server, "#size=300000"), tmp_path)
    assert names(tmp_path) == ["set.bin.lock"]


def test_a_body_shorter_than_the_expected_size_is_continued(server, tmp_path):
    server.fail(PATH, cut=100_000, times=1, headers={"Content-Length": None})  # ends as a complete one does
    assert download_file(remote(server, f"#size=300000&md5={MD5}"), tmp_path).read_bytes() == CONTENT
    assert server.ranges(PATH) == [None, "bytes=100000-"]


def test_a_file_of_unknown_size_leaves_room_on_the_disk(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=download.FREE_BYTES + 200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    limit = "200000 bytes, the most that fits on the disk with 1000000000 bytes left free"
    server.fail(PATH, endless="body", times=1)
    assert f"has more than {limit}" in error_of(remote(server), tmp_path)
    limit = limit.replace(" bytes", "", 1)
    assert f"has 300000 bytes, more than {limit}" in error_of(remote(server), tmp_path)
    assert names(tmp_path) == ["set.bin.lock"]


def test_a_body_in_chunks_is_complete(server, tmp_path):
    server.fail(PATH, chunked=True)
    assert download_file(remote(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["many", "-5", "1" * 5000])
def test_a_length_that_is_no_number_is_no_error(server, length):
    server.headers[PATH] = {"Content-Length": length}
    remote_size(remote(server))


def test_a_servers_words_are_not_in_messages(server, tmp_path):
    server.files.clear()
    server.fallback = lambda method, path: (302, {"Location": "http://[\x1b[31m"}, b"")
    message = error_of(remote(server), tmp_path)
    assert message.isprintable()
    assert len(message) < 500


@pytest.fixture
def private(server):
    """The server's URL of the file with a password and a token, as in params that have been read."""
    url = server.url(f"{PATH}?v=1&token=pa55").replace("://", "://user:pa55@")
    params = {
        "files": [url + f"#md5={MD5}"],
        "mirrors": {"http://elsewhere/": server.url("/").replace("//", "//u:pa55@")},
    }
    take_credentials(params)
    assert "pa55" not in str(params)
    return params


def test_credentials_are_sent_and_never_printed(server, private, tmp_path, capsys):
    server.fail(PATH, status=503, times=1)
    server.fail(PATH, status=404, times=1)
    file = RemoteFile.parse(private["files"][0])
    message = error_of(file, tmp_path)
    host = server.address.removeprefix("http://")
    assert f"http://***@{host}{PATH}?v=1&token=***: 404 Not Found" in message
    assert download_file(file, tmp_path).read_bytes() == CONTENT
    basic = "Basic " + base64.b64encode(b"user:pa55").decode()
    assert [request.headers.get("Authorization") for request in server.requests] == [basic] * 3
    assert remote_size(file) == 300_000
    printed = capsys.readouterr()
    assert "pa55" not in message + printed.out + printed.err + str(file)


def test_a_mirrors_credentials_are_sent_and_never_printed(server, private, tmp_path):
    file = RemoteFile.parse("http://elsewhere/data/set.bin")
    assert "pa55" not in error_of(RemoteFile.parse("http://elsewhere/gone"), tmp_path, private["mirrors"])
    assert download_file(file, tmp_path, private["mirrors"]).read_bytes() == CONTENT
    basic = "Basic " + base64.b64encode(b"u:pa55").decode()
    assert server.requests[-1].headers["Authorization"] == basic


def test_credentials_are_taken_from_params_with_aliases_and_cycles():
    url = "https://user:pa55@host.org/x"
    shared = [url]
    params = {"a": shared, "b": {"c": shared, "d": url + "#size=3", "e": 1}, "prompt": "a picture of"}
    params["self"] = params
    take_credentials(params)
    assert shared == ["https://***@host.org/x"]
    assert params["b"]["d"] == "https://***@host.org/x#size=3"
    assert params["prompt"] == "a picture of"


def test_the_errors_of_a_url_hide_its_credentials():
    for text in ("https://user:pa55@host.org/", "https://user:pa55@host.org/x#size=y", f"https://u:pa55@h/{'x' * 300}"):
        with pytest.raises(ValueError) as caught:
            RemoteFile.parse(text)
        assert "pa55" not in str(caught.value)
        assert len(str(caught.value)) < 200
