"""Predictions and losses of objects from a grid of features."""

import pytest
import torch
from torch.nn import functional as F

from stages.pretraining.object_heads import ABSENT, Labels, ObjectHeads, object_loss, presence_loss


def build_heads() -> ObjectHeads:
    torch.manual_seed(0)
    return ObjectHeads(dim=16).double()


def test_absent_classes_have_no_part_in_the_losses_of_places_and_colors():
    places = torch.full((3, 20), ABSENT)
    colors = places.clone()
    places[0, 3], places[2, 19] = 7, 1
    colors[0, 3], colors[2, 19] = 0, 5
    predicted = build_heads()(torch.randn(3, 10, 10, 16, dtype=torch.float64))
    expected = sum(
        F.cross_entropy(logits[image, label], answers[image, label]) / 2
        for logits, answers in ((predicted.ninths, places), (predicted.places, places), (predicted.colors, colors))
        for image, label in ((0, 3), (2, 19))
    )
    torch.testing.assert_close(object_loss(predicted, Labels(torch.zeros(3, 28), places, colors)), expected)


def test_evidence_lies_in_the_ninth_of_its_cell_and_says_that_the_class_is_present():
    heads = build_heads()
    features = torch.zeros(1, 10, 10, 16, dtype=torch.float64)
    features[0, 2, 6, 0] = 1.0  # third row of ten, seventh column: at the top, in the middle
    with torch.no_grad():
        heads.class_head.weight.zero_()
        heads.class_head.weight[4, 0] = 20.0
    predicted = heads(features)
    assert predicted.ninths[0, 4].softmax(0)[1] > 0.99
    assert predicted.ninths[0, 4].logsumexp(0).item() == pytest.approx(14.0, rel=1e-5)  # 20 and the bias of -6
    # A class without evidence is spread over all cells: 3, 4 and 3 rows and columns.
    shares = predicted.ninths[0, 0].softmax(0)
    torch.testing.assert_close(shares, torch.tensor([9, 12, 9, 12, 16, 12, 9, 12, 9], dtype=torch.float64) / 100)
    labels = Labels(torch.zeros(1, 28, dtype=torch.float64), torch.empty(0), torch.empty(0))
    absent = presence_loss(predicted, labels)
    labels.present[0, 4] = 1.0
    assert (absent - presence_loss(predicted, labels)).item() == pytest.approx(14.0 / 20, rel=1e-5)


def test_places_and_colors_do_not_move_the_evidence():
    heads = build_heads()
    predicted = heads(torch.randn(1, 10, 10, 16, dtype=torch.float64))
    (predicted.places.sum() + predicted.colors.sum()).backward()
    assert heads.class_head.weight.grad is None
