"""Images of any color mode become upright RGB images, and image files are found by name."""

import numpy as np
import pytest
from PIL import Image

from stages.core.stage import InputError
from stages.data.images import find_images, read_image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "LA", "1"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("RGB", "L", "CMYK") else "x.png")
    Image.new("RGB", (8, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (8, 4))
    assert np.asarray(image).min() > 250


def test_16_bit_gray_images_keep_their_upper_8_bits(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "x.png"))
    assert upright.shape == (8, 4, 3)
    assert upright[:4].max() == 0
    assert upright[4:].min() == 255


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("a/one.jpg", "a/b/two.PNG", "a/notes.txt", "three.webp"):
        (tmp_path / name).touch()
    return tmp_path


def test_images_are_found_in_folders_and_by_path(files, capsys):
    assert find_images([files / "a", files / "three.webp"]) == {
        "b/two.PNG": files / "a/b/two.PNG",
        "one.jpg": files / "a/one.jpg",
        "three.webp": files / "three.webp",
    }
    assert "skipped 1 of 3 files" in capsys.readouterr().out
    assert find_images([files / "a/one.jpg", files / "a"]).keys() == {"one.jpg", "b/two.PNG"}  # the same file twice


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["missing.jpg"], "missing.jpg: missing"),
        (["a/b", "a/notes.txt", "empty"], "empty: no images in this folder"),
        (["a", "one.jpg"], "would both be called 'one.jpg'"),
    ],
)
def test_missing_paths_empty_folders_and_equal_names_are_refused(files, paths, message):
    (files / "one.jpg").touch()
    with pytest.raises(InputError, match=message):
        find_images([files / path for path in paths])
