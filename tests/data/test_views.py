"""A view crops an image and its mask at the same pixels."""

import numpy as np
import pytest
from PIL import Image

from stages.data.views import View, crop_image, crop_mask, native_view, random_view


def two_tone(height, width):
    """Return an image whose channels equal its mask: 200 in the right half, 0 in the left, with a box of 100."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 200
    mask[2 : height // 3, 3 : width // 3] = 100
    return Image.fromarray(np.stack([mask] * 3, axis=2)), mask


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_are_cropped_at_the_same_pixels(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 120, 2)
    image, mask = two_tone(int(height), int(width))
    view = random_view(rng, int(height), int(width), (48, 64), 44)
    pixels = crop_image(image, view)[..., 0].astype(int)
    labels = crop_mask(mask, view).astype(int)
    assert pixels.shape == labels.shape == (44, 44)
    assert np.mean(np.abs(pixels - labels) < 40) > 0.93  # edges differ, where pixels are blended


def test_the_native_view_changes_nothing():
    image, mask = two_tone(31, 45)
    view = native_view(31, 45)
    assert np.array_equal(crop_image(image, view), np.asarray(image))
    assert np.array_equal(crop_mask(mask, view), mask)


def test_crop_and_flip_match_by_hand():
    mask = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert crop_mask(mask, View(4, 5, 1, 2, 2, 3, False)).tolist() == [[7, 8, 9], [12, 13, 14]]
    assert crop_mask(mask, View(4, 5, 1, 2, 2, 3, True)).tolist() == [[9, 8, 7], [14, 13, 12]]


def test_a_crop_beyond_the_image_is_padded_with_black_and_void():
    mask = np.full((2, 3), 7, np.uint8)
    view = View(2, 3, 0, 0, 3, 4, False)
    assert crop_mask(mask, view).tolist() == [[7, 7, 7, 255], [7, 7, 7, 255], [255] * 4]
    pixels = crop_image(Image.new("RGB", (3, 2), (9, 9, 9)), view)
    assert pixels[2].max() == 0
    assert pixels[:2, :3].min() == 9


def test_random_views_cover_the_range_and_stay_inside_the_image():
    rng = np.random.default_rng(0)
    views = [random_view(rng, 50, 80, (30, 33), 30) for _ in range(300)]
    assert {view.resize_height for view in views} == {30, 31, 32, 33}
    assert all(view.left + 30 <= view.resize_width and view.top + 30 <= view.resize_height for view in views)
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6
    assert all(abs(view.resize_width / view.resize_height - 1.6) < 0.03 for view in views)
