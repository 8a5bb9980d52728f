"""An archive is extracted completely or not at all, and never outside its folder."""

import io
import stat
import tarfile
import zipfile

import pytest

from stages.core.stage import InputError
from stages.fetch import archive
from stages.fetch.archive import extract_archive

FILES = {"set/a.txt": b"first", "set/deep/b.bin": bytes(range(256)) * 40, "set/A.txt": b"other case", "c": b""}
NAMES = ["x.tar", "x.tar.gz", "x.tgz", "x.zip"]


def write_tar(path, members):
    """Write members given as (name, content), or as a header alone."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as output:
        for info, content in members:
            output.writestr(info, content)
    return path


def write_archive(path, members):
    return (write_zip if path.suffix == ".zip" else write_tar)(path, members)


def tar_header(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def zip_header(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix
    info.external_attr = (kind | 0o777) << 16
    return info


def error_of(path, **settings):
    """The message for an archive; nothing is left on disk."""
    with pytest.raises(InputError) as caught:
        extract_archive(path, path.parent / "out", **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert list(path.parent.iterdir()) == [path]
    return message


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_extracted(tmp_path, name):
    extract_archive(write_archive(tmp_path / name, FILES.items()), tmp_path / "new/out")
    assert content(tmp_path / "new/out") == FILES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("name", NAMES)
def test_only_selected_files_are_written(tmp_path, name):
    path = write_archive(tmp_path / name, FILES.items())
    extract_archive(path, tmp_path / "out", only=lambda name: name.endswith(".txt"))
    assert content(tmp_path / "out") == {name: FILES[name] for name in ("set/a.txt", "set/A.txt")}
    assert not (tmp_path / "out/set/deep").exists()


def test_paths_are_normalized_and_modes_are_safe(tmp_path):
    program = tarfile.TarInfo("./bin/run")
    program.mode = 0o6777
    path = write_tar(tmp_path / "x.tar", [tar_header("./bin/", tarfile.DIRTYPE), program, ("./bin/x", b"1")])
    names = []
    extract_archive(path, tmp_path / "out", only=lambda name: not names.append(name))
    assert names == ["bin/run", "bin/x"]
    assert content(tmp_path / "out") == {"bin/run": b"", "bin/x": b"1"}
    assert stat.S_IMODE((tmp_path / "out/bin/run").stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_long_and_non_ascii_names(tmp_path, kind):
    name = "/".join(["folder" * 10] * 5) + "/größe.txt"
    extract_archive(write_archive(tmp_path / kind, [(name, b"1")]), tmp_path / "out")
    assert content(tmp_path / "out") == {name: b"1"}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/.."])
def test_a_path_outside_the_folder_is_refused(tmp_path, kind, name):
    path = write_archive(tmp_path / kind, [("good", b"1"), (name, b"2")])
    assert f"{name!r} lies outside the folder" in error_of(path)
    assert repr(name) in error_of(path, only=lambda name: name == "good")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"],
)
def test_links_and_special_files_in_a_tar_are_refused(tmp_path, kind):
    path = write_tar(tmp_path / "x.tar", [("good", b"1"), tar_header("odd", kind, "good")])
    assert "'odd' is a link or a special file" in error_of(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_links_and_special_files_in_a_zip_are_refused(tmp_path, kind):
    path = write_zip(tmp_path / "x.zip", [("good", b"1"), (zip_header("odd", kind), b"/etc/passwd")])
    assert "'odd' is a link or a special file" in error_of(path)


@pytest.mark.parametrize("kind", NAMES)
def test_the_total_size_is_limited(tmp_path, kind):
    path = write_archive(tmp_path / kind, [*FILES.items(), ("zeros", bytes(8_000_000))])
    assert "with 'zeros' it extracts to more than 1000000 bytes" in error_of(path, max_bytes=1_000_000)
    size = sum(map(len, FILES.values()))
    extract_archive(path, tmp_path / "out", only=lambda name: name != "zeros", max_bytes=size)


def test_a_zip_member_is_not_longer_than_its_header_says(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a", b"0" * 1000)])
    path.write_bytes(path.read_bytes().replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert "Bad CRC-32 for file 'a'" in error_of(path)


@pytest.mark.parametrize("kind", NAMES)
def test_a_truncated_archive_is_named_wherever_it_ends(tmp_path, kind):
    whole = write_archive(tmp_path / kind, FILES.items()).read_bytes()
    # A tar ends with two blocks of zeros, then padding
    needed = len(whole.rstrip(b"\0")) // 512 * 512 + 1536 if kind == "x.tar" else len(whole)
    for end in {0, 1, 100, 512, 1024, 2048, 5000, needed // 2, needed - 1}:
        if end < needed:
            (tmp_path / kind).write_bytes(whole[:end])
            assert "truncated, or not an archive" in error_of(tmp_path / kind)


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_that_is_not_an_archive_is_named(tmp_path, kind):
    (tmp_path / kind).write_bytes(b"<html>Not found</html>" * 100)
    assert "not an archive" in error_of(tmp_path / kind)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a", b"1"), ("b", b"2")])
    path.write_bytes(path.read_bytes().replace(b"b\0\0", b"c\0\0", 1))
    assert "truncated, or not an archive" in error_of(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a", b"1")])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in error_of(path)


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path):
    assert "cannot be extracted" in error_of(write_tar(tmp_path / "x.tar", [("a", b"1"), ("a/b", b"1")]))


def test_unknown_names_missing_files_and_existing_folders(tmp_path):
    (tmp_path / "x.rar").touch()
    assert ".tar, .tar.gz, .tgz, .zip" in error_of(tmp_path / "x.rar")
    with pytest.raises(InputError, match="x.zip: missing"):
        extract_archive(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        extract_archive(write_zip(tmp_path / "x.zip", []), tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.tarfile.TarFile, "extract", full)
    assert "No space left on device" in error_of(write_tar(tmp_path / "x.tar", FILES.items()))
