"""Shapes, gradients and projections of the heads."""

import pytest
import torch

from stages.segmentation.heads import build_head
from stages.segmentation.heads.transformer import Transformer

ROWS = {
    "linear": {"kind": "linear", "kernel": None, "shared_qk": None},
    "convolutional 3": {"kind": "convolutional", "kernel": 3, "shared_qk": None},
    "convolutional 5": {"kind": "convolutional", "kernel": 5, "shared_qk": None},
    "transformer": {"kind": "transformer", "kernel": None, "shared_qk": False},
    "shared": {"kind": "transformer", "kernel": None, "shared_qk": True},
}


@pytest.mark.parametrize(("row", "shrinks"), [(name, int(name[-1]) - 1 if name[-1].isdigit() else 0) for name in ROWS])
def test_shapes_on_any_grid_and_gradients_everywhere(row, shrinks):
    head = build_head(dim=12, classes=5, heads=3, **ROWS[row])
    for rows, columns in ((6, 9), (7, 5)):
        logits = head(torch.randn(2, rows, columns, 12))
        assert logits.shape == (2, rows - shrinks, columns - shrinks, 5)
    logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in head.parameters())


def test_linear_head_is_a_1x1_convolution():
    head = build_head(dim=4, classes=3, heads=1, **ROWS["linear"])
    convolution = torch.nn.Conv2d(4, 3, 1)
    convolution.weight.data = head.classify.weight.data[:, :, None, None]
    convolution.bias.data = head.classify.bias.data
    patches = torch.randn(2, 5, 6, 4)
    torch.testing.assert_close(head(patches), convolution(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_shared_qk_has_one_projection_and_symmetric_scores():
    dim = 8
    shared, separate = (Transformer(dim, 3, heads=2, shared_qk=choice) for choice in (True, False))
    sizes = [sum(weight.numel() for weight in head.parameters()) for head in (shared, separate)]
    assert sizes[1] - sizes[0] == dim * dim + dim
    tokens = shared.attention._by_head(shared.attention.query(torch.randn(1, 6, dim)))
    scores = tokens @ tokens.transpose(-2, -1)
    torch.testing.assert_close(scores, scores.transpose(-2, -1))
    assert "attention.key.weight" not in shared.state_dict()


def test_transformer_mixes_patches_and_linear_does_not():
    patches = torch.randn(1, 4, 4, 12)
    changed = patches.clone()
    changed[0, 0, 0] = torch.randn(12)
    for row, mixes in (("linear", False), ("transformer", True)):
        head = build_head(dim=12, classes=5, heads=3, **ROWS[row])
        same = torch.allclose(head(patches)[0, 3, 3], head(changed)[0, 3, 3], atol=1e-7)
        assert same != mixes


def test_logits_are_normalized_over_classes():
    logits = Transformer(8, 6, heads=2, shared_qk=False)(torch.randn(2, 3, 3, 8))
    torch.testing.assert_close(logits.mean(-1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)


def test_attention_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="5 attention heads do not divide 12"):
        Transformer(12, 3, heads=5, shared_qk=False)


def test_unknown_kind_names_the_others():
    with pytest.raises(ValueError, match="available: linear, convolutional, transformer"):
        build_head(kind="conv", dim=8, classes=3, heads=2, kernel=None, shared_qk=None)
