"""Images of any color mode become upright RGB images, and image files are found by name."""

import numpy as np
import pytest
from PIL import Image

from stages.core.stage import InputError
from stages.data.images import find_images, read_image, read_mask
from stages.data.voc import COLOR_MAP


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "LA", "1"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("RGB", "L", "CMYK") else "x.png")
    Image.new("RGB", (8, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (8, 4))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I", "tif"), ("F", "tif")])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path, mode, suffix):
    # Pillow clips them at 255: integers become white, and floats from 0 to 1 black.
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (8, 4), 1).save(path)
    with pytest.raises(ValueError, match=f"8 bits .mode {mode}.; convert the image to 8 bits per channel"):
        read_image(path)


def test_a_palette_with_transparency_keeps_its_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 100, 200, 255]], np.uint8)).convert("P")
    image.save(tmp_path / "x.png", transparency=bytes([0, 10, 20]))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), expected)


@pytest.mark.parametrize(
    ("bits", "name", "message"),
    [(2, "x.png", "2 or 4 bits"), (4, "x.png", "2 or 4 bits"), (8, "x.jpg", "changes class indices")],
)
def test_masks_whose_values_pillow_changes_are_refused(tmp_path, bits, name, message):
    Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).save(tmp_path / name, bits=bits)
    with pytest.raises(ValueError, match=message):
        read_mask(tmp_path / name)


def test_a_palette_mask_of_4_bits_keeps_its_values(tmp_path):
    mask = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), mode="P")
    mask.putpalette(COLOR_MAP.tobytes()[:48])
    mask.save(tmp_path / "x.png", bits=4)
    assert read_mask(tmp_path / "x.png").tolist() == [[0, 1, 2, 3]]


def test_only_the_formats_of_images_are_opened(tmp_path):
    Image.new("RGB", (8, 4)).save(tmp_path / "x.gif")
    (tmp_path / "x.gif").rename(tmp_path / "x.jpg")  # some of Oxford-IIIT Pet are
    assert read_image(tmp_path / "x.jpg").size == (8, 4)
    Image.new("RGB", (8, 4)).save(tmp_path / "x.eps")  # Pillow starts Ghostscript to read it
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "x.png")


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
