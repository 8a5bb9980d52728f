"""A folder appears complete or not at all."""

import pytest

from stages.core.atomic import atomic_dir


def test_a_folder_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "new/folder"
    with atomic_dir(folder) as temporary:
        (temporary / "file").write_text("content")
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "content"


def test_nothing_remains_of_an_interrupted_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("content")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_faster_process_stays(tmp_path):
    with atomic_dir(tmp_path / "folder"):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/file").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder/file").read_text() == "first"
