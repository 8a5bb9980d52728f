"""An archive is extracted whole or not at all, and none gets outside its folder."""

import gzip
import io
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.fetch import archive
from stages.fetch.archive import extract_archive

FILES = {"set/a.txt": b"first", "set/deep/b.bin": bytes(range(256)) * 40, "set/A.txt": b"other case", "c": b""}
ALL_KINDS = ["x.tar", "x.tar.gz", "x.tgz", "x.zip"]


def tar_file(path, members):
    """`members` are names and bytes, or a header alone."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as made:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            made.addfile(info, io.BytesIO(member[1]))
    return path


def zip_file(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for info, content in members:
            made.writestr(info, content)
    return path


def packed(path, members):
    return (zip_file if path.suffix == ".zip" else tar_file)(path, members)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_special(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def refusal(path, **named):
    """What is said of an archive, which leaves nothing behind."""
    folder = path.parent / "out"
    with pytest.raises(InputError) as caught:
        extract_archive(path, folder, **named)
    said = str(caught.value)
    assert "\n" not in said
    assert path.name in said
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return said


def content(folder):
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("name", ALL_KINDS)
def test_all_kinds_are_extracted_whole(tmp_path, name):
    extract_archive(packed(tmp_path / name, FILES.items()), tmp_path / "new/out")
    assert content(tmp_path / "new/out") == FILES
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["out"]
    assert stat.S_IMODE((tmp_path / "new/out/c").stat().st_mode) & 0o133 == 0


@pytest.mark.parametrize("name", ALL_KINDS)
def test_only_what_is_asked_for_is_written(tmp_path, name):
    extract_archive(packed(tmp_path / name, FILES.items()), tmp_path / "out", only=lambda one: one.endswith(".txt"))
    assert content(tmp_path / "out") == {one: FILES[one] for one in ("set/a.txt", "set/A.txt")}
    assert not (tmp_path / "out/set/deep").exists()


def test_folders_dots_and_executables(tmp_path):
    program = tarfile.TarInfo("./bin/run")
    program.mode = 0o6777
    folders = [special(".", tarfile.DIRTYPE), special("./empty/", tarfile.DIRTYPE)]
    extract_archive(tar_file(tmp_path / "x.tar", [*folders, program, ("./bin/x", b"1")]), tmp_path / "out")
    assert (tmp_path / "out/empty").is_dir()
    assert content(tmp_path / "out") == {"bin/run": b"", "bin/x": b"1"}
    assert stat.S_IMODE((tmp_path / "out/bin/run").stat().st_mode) & 0o7722 == 0o700


def test_names_that_are_long_or_foreign_come_through(tmp_path):
    long = "/".join(["folder" * 10] * 5) + "/größe.txt"
    for name in ("x.tar", "x.zip"):
        extract_archive(packed(tmp_path / name, [(long, b"1")]), tmp_path / name[2:])
        assert content(tmp_path / name[2:]) == {long: b"1"}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x", "c:x", "a\\..\\x", "\\\\host\\x", "a/.."])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, kind, name):
    path = packed(tmp_path / kind, [("good", b"1"), (name, b"2")])
    assert repr(name) in refusal(path)
    assert repr(name) in refusal(path, only=lambda one: one == "good")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device or FIFO"),
        (tarfile.BLKTYPE, "a device or FIFO"),
        (tarfile.FIFOTYPE, "a device or FIFO"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "the unknown type"),
    ],
)
def test_a_tar_member_that_is_no_file_is_refused(tmp_path, kind, said):
    told = refusal(tar_file(tmp_path / "x.tar", [("good", b"1"), special("odd", kind, "good")]))
    assert "'odd'" in told
    assert said in told


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "a device or FIFO")])
def test_a_zip_member_that_is_no_file_is_refused(tmp_path, kind, said):
    told = refusal(zip_file(tmp_path / "x.zip", [("good", b"1"), (zip_special("odd", kind), b"/etc/passwd")]))
    assert "'odd'" in told
    assert said in told


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_one_name_twice_must_be_one_content(tmp_path, kind):
    same = packed(tmp_path / kind, [("a/b", b"12"), ("./a/b" if kind == "x.tar" else "a/b", b"12")])
    extract_archive(same, tmp_path / "out")
    assert content(tmp_path / "out") == {"a/b": b"12"}
    (tmp_path / "out/a/b").unlink()
    (tmp_path / "out/a").rmdir()
    (tmp_path / "out").rmdir()
    for other in (b"13", b"1", b"123"):
        assert "'a/b' is there twice" in refusal(packed(tmp_path / kind, [("a/b", b"12"), ("a/b", other)]))
    for first, second in (("a", "a/b"), ("a/b", "a")):
        assert "file and a folder" in refusal(packed(tmp_path / kind, [(first, b"1"), (second, b"1")]))


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
def test_a_bomb_is_refused(tmp_path, kind):
    path = packed(tmp_path / kind, [("zeros", bytes(8_000_000))])
    assert path.stat().st_size < 20_000
    assert "200 times its own size" in refusal(path)


def test_a_bomb_among_what_is_not_asked_for_is_refused(tmp_path):
    path = tar_file(tmp_path / "x.tar.gz", [("zeros", bytes(8_000_000)), ("good", b"1")])
    assert "200 times its own size" in refusal(path, only=lambda one: one == "good")


def test_a_bomb_in_a_header_or_after_the_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz", pax_headers={"comment": "0" * 3_000_000}) as made:
        made.addfile(tarfile.TarInfo("a"))
    monkeypatch.setattr(archive, "MOST_GROWTH", 10_000)
    assert "a header of more than" in refusal(path)
    monkeypatch.undo()
    tar_file(path, [("a", b"1")])
    with gzip.open(path, "ab") as more:
        more.write(bytes(8_000_000))
    assert "200 times" in refusal(path)


def test_a_zip_header_that_lies_about_its_size_is_found_out(tmp_path):
    path = zip_file(tmp_path / "x.zip", [("a", b"0" * 1000)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 1000), struct.pack("<L", 10)))
    assert "Bad CRC-32 for file 'a'" in refusal(path)


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_bytes_and_members_have_bounds(tmp_path, kind):
    path = packed(tmp_path / kind, FILES.items())
    assert "'set/deep/b.bin' it unpacks to more than 1000 bytes" in refusal(path, most_bytes=1000)
    assert "more than 3 members" in refusal(path, most_files=3)
    extract_archive(path, tmp_path / "out", most_files=4, most_bytes=sum(map(len, FILES.values())))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_truncated_archive_is_named_wherever_it_ends(tmp_path, kind):
    whole = packed(tmp_path / kind, FILES.items()).read_bytes()
    needed = 6 * 1024 if kind == "x.tar" else len(whole)  # tar's end is padded
    for end in {0, 1, 100, 512, 1024, 2048, 5000, needed // 2, needed - 1}:
        if end < needed:
            (tmp_path / kind).write_bytes(whole[:end])
            assert "truncated, or no archive" in refusal(tmp_path / kind)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_is_no_archive_is_named(tmp_path, kind):
    (tmp_path / kind).write_bytes(b"<html>Not found</html>" * 100)
    assert "no archive" in refusal(tmp_path / kind)


def test_a_header_that_is_damaged_is_not_taken_for_the_end(tmp_path):
    path = tar_file(tmp_path / "x.tar", [("a", b"1"), ("b", b"2")])
    path.write_bytes(path.read_bytes().replace(b"b\0\0", b"c\0\0", 1))
    assert "truncated, or no archive" in refusal(path)


def test_an_encrypted_or_oddly_packed_zip_is_refused(tmp_path):
    path = zip_file(tmp_path / "x.zip", [("a", b"1")])
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)
    assert "'a' is encrypted" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as made:
        made.writestr("a", b"1")
    assert "'a' is packed by another method" in refusal(path)


def test_other_names_missing_files_and_folders_that_exist(tmp_path):
    (tmp_path / "x.rar").touch()
    assert ".tar, .tar.gz, .tgz, .zip" in refusal(tmp_path / "x.rar")
    (tmp_path / "x.rar").unlink()
    with pytest.raises(InputError, match="x.zip: missing"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        extract_archive(zip_file(tmp_path / "x.zip", []), tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_write_file", full)
    assert "No space left on device" in refusal(tar_file(tmp_path / "x.tar", FILES.items()))


def test_a_killed_extraction_leaves_no_folder_and_the_next_one_clears_up(tmp_path):
    path = tar_file(tmp_path / "x.tar", FILES.items())
    code = (
        "import sys, time; from pathlib import Path; from stages.fetch.archive import extract_archive\n"
        "extract_archive(Path(sys.argv[1]), Path(sys.argv[2]), only=lambda name: name != 'c' or time.sleep(60))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    beside = tmp_path / f"out.{process.pid}.tmp"
    while not (beside / "set/A.txt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    extract_archive(path, tmp_path / "out2")
    (tmp_path / f"out.{os.getpid()}.tmp").mkdir()  # of a run that had the number of this one
    extract_archive(path, tmp_path / "out")
    assert beside.exists(), "another run is still at it"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "out").rename(tmp_path / "out1")
    extract_archive(path, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "out1", "out2", "x.tar"]
    assert content(tmp_path / "out") == FILES
