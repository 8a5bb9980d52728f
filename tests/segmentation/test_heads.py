"""Shapes, gradients and options of the segmentation heads."""

from pathlib import Path

import pytest
import torch

from stages.core.stage import InputError
from stages.params.segmentation import Head
from stages.segmentation import heads
from stages.segmentation.heads import HEADS, build_head, check_heads
from stages.segmentation.heads.base import HeadShape
from stages.segmentation.heads.transformer import TransformerHead

OPTIONS = {
    "linear": ("linear", {}),
    "convolution of 3": ("convolutional", {"kernel": 3}),
    "convolution of 5": ("convolutional", {"kernel": 5}),
    "transformer": ("transformer", {"shared_qk": False}),
    "transformer with shared qk": ("transformer", {"shared_qk": True}),
    "transformer with biases": ("transformer", {"shared_qk": False, "qkv_bias": True}),
}


# They cannot change the logits: the softmax over keys ignores what is added to all scores of a query, and the norm over
# classes what is added to all class embeddings.
WITHOUT_GRADIENT = ("attention.key.bias", "class_mlp.2.bias")


@pytest.mark.parametrize("name", OPTIONS)
def test_shapes_on_any_grid_and_gradients_of_all_weights(name):
    kind, options = OPTIONS[name]
    head = build_head(kind, options, dim=12, classes=5, attention_heads=3).double()
    lost = options.get("kernel", 1) - 1
    for rows, columns in ((6, 9), (7, 5)):
        logits = head(torch.randn(2, rows, columns, 12, dtype=torch.float64))
        assert logits.shape == (2, rows - lost, columns - lost, 5)
    (logits * torch.randn_like(logits)).sum().backward()
    for parameter, weight in head.named_parameters():
        assert (weight.grad.abs().max() > 1e-6) == (parameter not in WITHOUT_GRADIENT)


def test_the_linear_head_is_a_1x1_convolution():
    head = build_head("linear", {}, dim=4, classes=3, attention_heads=1).double()
    convolution = torch.nn.Conv2d(4, 3, 1).double()
    convolution.weight.data = head.classify.weight.data[:, :, None, None]
    convolution.bias.data = head.classify.bias.data
    patches = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(head(patches), convolution(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_shared_qk_equals_separate_projections_with_equal_weights():
    shape = HeadShape(dim=8, classes=3, attention_heads=2)
    shared = TransformerHead(shape, shared_qk=True).double()
    separate = TransformerHead(shape, shared_qk=False).double()
    weights = shared.state_dict()
    separate.load_state_dict(weights | {"attention.key.weight": weights["attention.query.weight"]})
    patches = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(separate(patches), shared(patches))


@pytest.mark.parametrize(("name", "mixes"), [("linear", False), ("transformer", True)])
def test_the_transformer_mixes_patches_and_the_linear_head_does_not(name, mixes):
    kind, options = OPTIONS[name]
    head = build_head(kind, options, dim=12, classes=5, attention_heads=3).double()
    patches = torch.randn(1, 4, 4, 12, dtype=torch.float64)
    changed = patches.clone()
    changed[0, 0, 0] = torch.randn(12)
    difference = (head(patches) - head(changed))[0, 3, 3].abs().max()
    assert (difference > 1e-9) == mixes  # float64: rounding errors are below 1e-14


def test_queries_keys_and_values_have_biases_only_on_request():
    shape = HeadShape(dim=8, classes=3, attention_heads=2)
    projections = {"attention.query.bias", "attention.key.bias", "attention.value.bias"}
    assert not projections & set(TransformerHead(shape, shared_qk=False).state_dict())
    assert projections <= set(TransformerHead(shape, shared_qk=False, qkv_bias=True).state_dict())


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_class_embeddings_start_from_their_standard_deviation(std):
    shape = HeadShape(dim=384, classes=21, attention_heads=6)
    embeddings = TransformerHead(shape, shared_qk=False, class_std=std).class_embeddings
    assert embeddings.std().item() == pytest.approx(std, rel=0.03)  # 8064 samples: a standard error of 0.8 %


def test_the_transformers_logits_are_normalized_over_classes():
    head = TransformerHead(HeadShape(dim=8, classes=6, attention_heads=2), shared_qk=False).double()
    logits = head(torch.randn(2, 3, 3, 8, dtype=torch.float64))
    torch.testing.assert_close(logits.mean(-1), torch.zeros(2, 3, 3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("conv", {}, "mine.kind = 'conv': must be one of: linear, convolutional, transformer"),
        ("linear", {"kernel": 3}, "segmentation.heads.mine.kernel = 3: unknown key; allowed here: kind$"),
        (
            "convolutional",
            {"kernel": 3, "dim": 8},
            "segmentation.heads.mine.dim = 8: unknown key; allowed here: kind, kernel",
        ),
        ("convolutional", {}, "'segmentation.heads.mine.kernel' is missing"),
        ("convolutional", {"kernel": True}, "segmentation.heads.mine.kernel = True: must be an integer from 1 to 99"),
        ("convolutional", {"kernel": "3"}, "segmentation.heads.mine.kernel = '3': must be an integer from 1 to 99"),
        ("convolutional", {"kernel": 0}, "segmentation.heads.mine.kernel = 0: must be an integer from 1 to 99"),
        ("transformer", {"shared_qk": 1}, "segmentation.heads.mine.shared_qk = 1: .*valid boolean"),
        (
            "transformer",
            {"shared_qk": True, "class_std": 0.0},
            "segmentation.heads.mine.class_std = 0.0: must be a number greater than 0",
        ),
        ("transformer", {"shared_qk": "yes"}, "segmentation.heads.mine.shared_qk = 'yes': .*valid boolean"),
    ],
)
def test_invalid_kinds_and_options_are_named_in_one_line(kind, options, message):
    with pytest.raises(InputError, match=message) as error:
        build_head(kind, options, dim=8, classes=3, attention_heads=2, name="mine")
    assert "\n" not in str(error.value)


def test_heads_of_params_are_checked_without_data():
    rows = {"first": Head(kind="linear"), "second": Head(kind="convolutional", kernel=3)}
    check_heads(rows)
    invalid = Head.model_construct(kind="convolutional", kernel=0)
    with pytest.raises(InputError, match="segmentation.heads.third.kernel = 0"):
        check_heads(rows | {"third": invalid})


def test_every_head_class_is_registered():
    folder = Path(heads.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert files == {head.__module__.rpartition(".")[2] for head in HEADS.values()}
