"""IoU against cases computed by hand."""

import numpy as np
import pytest

from stages.core.bootstrap import confidence_interval
from stages.segmentation.iou import confusion, iou, mean_iou_draws


def mask(*rows):
    return np.array([rows], dtype=np.uint8)


def test_counts_and_ious_by_hand():
    truth = mask([0, 0, 1, 1], [0, 0, 1, 1])
    prediction = mask([0, 1, 1, 1], [0, 0, 1, 0])
    matrix = confusion(truth, prediction, 2)
    assert matrix.tolist() == [[[3, 1], [1, 3]]]
    result = iou(matrix.sum(0))
    assert result.per_class == (60.0, 60.0)  # 3 of 3 + 1 + 1
    assert result.mean == 60.0


def test_void_pixels_are_not_counted_for_any_prediction():
    truth = mask([0, 255, 1, 255])
    prediction = mask([0, 1, 1, 0])
    assert confusion(truth, prediction, 2).tolist() == [[[1, 0], [0, 1]]]


def test_an_absent_class_is_left_out_of_the_mean():
    result = iou(confusion(mask([0, 0, 2, 2]), mask([0, 0, 2, 0]), 3).sum(0))
    assert result.per_class == (pytest.approx(200 / 3), None, 50.0)
    assert result.mean == pytest.approx((200 / 3 + 50) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = iou(confusion(mask([0, 0, 0, 0]), mask([0, 0, 0, 1]), 2).sum(0))
    assert result.per_class == (75.0, 0.0)


def test_all_wrong_is_zero():
    assert iou(confusion(mask([0, 0, 1, 1]), mask([1, 1, 0, 0]), 2).sum(0)).mean == 0.0


def test_iou_is_of_summed_counts_not_a_mean_over_images():
    truth = np.array([[[0, 1]], [[1, 1]]], dtype=np.uint8)
    prediction = np.array([[[0, 0]], [[1, 1]]], dtype=np.uint8)
    matrix = confusion(truth, prediction, 2)
    assert matrix.shape == (2, 2, 2)
    assert iou(matrix.sum(0)).per_class == (50.0, pytest.approx(200 / 3))


@pytest.mark.parametrize(("truth", "prediction", "name"), [(2, 0, "truth"), (0, 2, "prediction"), (254, 0, "truth")])
def test_values_beyond_the_classes_are_refused(truth, prediction, name):
    with pytest.raises(ValueError, match=name):
        confusion(mask([truth, 0]), mask([prediction, 0]), 2)


def test_a_matrix_without_pixels_is_refused():
    with pytest.raises(ValueError, match="void"):
        iou(np.zeros((3, 3), int))


def test_bootstrap_draws_are_paired_and_contain_the_mean():
    rng = np.random.default_rng(0)
    good = rng.integers(50, 100, (40, 1, 1)) * np.eye(3, dtype=int) + 5
    worse = good + 10 * (1 - np.eye(3, dtype=int))
    low, high = confidence_interval(mean_iou_draws(good, seed=1))
    assert low < iou(good.sum(0)).mean < high
    difference = mean_iou_draws(good, seed=1) - mean_iou_draws(worse, seed=1)
    difference_low, difference_high = confidence_interval(difference)
    assert difference_low > 0
    assert difference_high - difference_low < high - low
