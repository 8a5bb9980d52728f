"""Third-party ViTs: DINO's keys and numbers, images of any size, register tokens, names of sources."""

import json
import math
import re
from argparse import Namespace
from dataclasses import asdict
from functools import partial

import pytest
import timm
import torch
from float_tolerance import assert_close
from safetensors.torch import save_file
from small_checkpoints import Float64Backbone
from torch.nn import functional as F

from stages.models import vit
from stages.params.model_source import display_name, is_checkpoint_file, split_revision

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TINY = {"dim": 128, "depth": 2, "patch": 8, "grid": 6}  # two heads


def dino_shapes(dim, depth, patch, grid):
    """Names and shapes of DINO's ViT (vision_transformer.py): qkv with bias, feedforward layers four times as wide."""

    def weight_and_bias(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, grid * grid + 1, dim)}
    shapes |= weight_and_bias("patch_embed.proj", dim, 3, patch, patch)
    for index in range(depth):
        block = f"blocks.{index}"
        shapes |= weight_and_bias(f"{block}.norm1", dim)
        shapes |= weight_and_bias(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= weight_and_bias(f"{block}.attn.proj", dim, dim)
        shapes |= weight_and_bias(f"{block}.norm2", dim)
        shapes |= weight_and_bias(f"{block}.mlp.fc1", 4 * dim, dim)
        shapes |= weight_and_bias(f"{block}.mlp.fc2", dim, 4 * dim)
    return shapes | weight_and_bias("norm", dim)


def random_weights(shapes, std=0.1):
    """Normal weights of the given shapes, those of norms around 1."""
    weights = {name: torch.randn(shape) * std for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


def random_images(height, width, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def save_pth(path, content):
    torch.save(content, path)
    return str(path)


@pytest.fixture
def weights():
    return random_weights(dino_shapes(**TINY))


@pytest.fixture
def backbone(tmp_path, weights):
    return Float64Backbone(vit.load(save_pth(tmp_path / "tiny.pth", weights)).vit)


# DINO's forward pass, on its own names


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def expected_tokens(weights, pixels, heads, positions=None):
    """Float64 tokens `(B, 1 + patches, dim)` of uint8 images; `positions` replaces the position embeddings."""
    weights = {name: weight.double() for name, weight in weights.items()}
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    kernel = weights["patch_embed.proj.weight"]
    x = ((pixels / 255 - mean) / std).double()
    x = F.conv2d(x, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x), 1)
    x = x + (weights["pos_embed"] if positions is None else positions)
    for index in range(sum(name.endswith("norm1.weight") for name in weights)):
        block = f"blocks.{index}"
        qkv = linear(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", x))
        query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1) @ value
        x = x + linear(weights, f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x)))
        x = x + linear(weights, f"{block}.mlp.fc2", inner)
    return norm(weights, "norm", x)


def all_tokens(tokens):
    return torch.cat((tokens.class_token[:, None], tokens.patches.flatten(1, 2)), 1)


def test_the_published_dino_has_its_keys_and_sizes_and_equals_timms(tmp_path):
    """`dino_deitsmall16_pretrain.pth`: 150 tensors, 21,665,664 numbers, and timm's model of that name."""
    shapes = dino_shapes(384, 12, 16, 14)
    weights = random_weights(shapes, std=0.03)
    assert (len(shapes), shapes["pos_embed"]) == (150, (1, 197, 384))
    assert sum(weight.numel() for weight in weights.values()) == 21_665_664
    backbone = vit.load(save_pth(tmp_path / "dino_deitsmall16_pretrain.pth", weights))
    assert {name: tuple(weight.shape) for name, weight in backbone.vit.state_dict().items()} == shapes
    assert (len(backbone.vit.blocks), backbone.heads, backbone.dim, backbone.patch) == (12, 6, 384, (16, 16))
    timm_vit = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval()
    timm_vit.load_state_dict(weights)
    assert timm_vit.pretrained_cfg["mean"] == backbone.mean
    assert vit.weights_hash(backbone.vit) == vit.weights_hash(timm_vit)
    pixels = random_images(224, 224, 1)
    with torch.no_grad():
        expected = timm_vit.double().forward_features(vit.normalize(pixels).double())
    assert_close(all_tokens(Float64Backbone(backbone.vit)(pixels)), expected)


def test_the_published_classifier_has_its_keys_and_sizes():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224.augreg_in1k", pretrained=False)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes == dino_shapes(768, 12, 16, 14) | {"head.weight": (1000, 768), "head.bias": (1000,)}
    assert sum(math.prod(shape) for shape in shapes.values()) == 86_567_656


def test_the_forward_pass_equals_dinos(backbone, weights):
    pixels = random_images(48, 48)
    tokens = backbone(pixels)
    expected = expected_tokens(weights, pixels, heads=2)
    assert_close(all_tokens(tokens), expected)
    assert tokens.patches.shape == (2, 6, 6, 128)
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda bare: {"teacher": bare, "epoch": 3},
        lambda bare: {"model": bare},
        lambda bare: {"state_dict": {f"module.{name}": weight for name, weight in bare.items()}},
        lambda bare: {
            "teacher": {f"module.backbone.{name}": weight for name, weight in bare.items()}
            | {f"module.head.{name}": torch.zeros(4) for name in ("mlp.0.weight", "last_layer.weight_g")},
            "student": {"other": torch.zeros(1)},
        },
    ],
)
def test_wrappers_of_training_code_are_removed(tmp_path, weights, wrap):
    state_dict = vit.load(save_pth(tmp_path / "wrapped.pth", wrap(weights))).vit.state_dict()
    assert state_dict.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in state_dict.items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_files_of_every_kind_load(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else save_pth(path, weights)
    assert torch.equal(vit.load(str(path)).vit.state_dict()["pos_embed"], weights["pos_embed"])


def test_half_precision_becomes_single(tmp_path, weights):
    halves = {name: weight.half() for name, weight in weights.items()}
    state_dict = vit.load(save_pth(tmp_path / "m.pth", halves)).vit.state_dict()
    assert all(torch.equal(weight, halves[name].float()) for name, weight in state_dict.items())


def load_error(path):
    with pytest.raises(ValueError) as error:
        vit.load(str(path))
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def without(name):
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


def with_shape(name, shape):
    return lambda weights: weights | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.attn.qkv.bias"), "lacks blocks.1.attn.qkv.bias$"),
        (without("norm.weight"), "lacks norm.weight$"),
        (without("pos_embed"), "no patch_embed.proj.weight, pos_embed or blocks"),
        (without("patch_embed.proj.weight"), "no patch_embed.proj.weight, pos_embed or blocks"),
        (with_shape("blocks.0.ls1.gamma", (128,)), "has unknown keys blocks.0.ls1.gamma$"),
        (with_shape("blocks.1.mlp.fc1.weight", (512, 64)), "blocks.1.mlp.fc1.weight is 512x64, expected 512x128$"),
        (with_shape("pos_embed", (1, 36, 128)), "pos_embed is 1x36x128, expected 1x37x128$"),  # no class token's
        (lambda weights: {"model": {"layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}}, "is not a plain ViT"),
        (lambda weights: [weights], "holds a list; expected tensors by name"),
        (lambda weights: {"model": {**weights, "epoch": 3}}, "contains values that are not tensors: epoch"),
    ],
)
def test_weights_that_do_not_match_give_a_one_line_error(tmp_path, weights, change, message):
    path = tmp_path / "m.pth"
    save_pth(path, change(weights))
    assert re.search(message, load_error(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_a_file_gives_a_one_line_error(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else save_pth(path, weights)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert "not a file of tensors" in load_error(path)


@pytest.mark.parametrize(
    "shapes",
    [
        {"pos_embed": (37,)},
        {"patch_embed.proj.weight": (128, 192)},
        {"patch_embed.proj.weight": (128, 3, 2, 8, 8)},  # of a video model
    ],
)
def test_shapes_of_other_models_give_a_one_line_error(tmp_path, weights, shapes):
    path = tmp_path / "m.pth"
    save_pth(path, weights | {name: torch.zeros(shape) for name, shape in shapes.items()})
    assert "is not a plain ViT" in load_error(path)


@pytest.mark.parametrize("dim", [200, 1280, 1408])
def test_a_width_with_an_unknown_number_of_heads_is_rejected(tmp_path, dim):
    path = tmp_path / "m.pth"
    save_pth(path, {name: torch.zeros(shape) for name, shape in dino_shapes(dim, 1, 8, 2).items()})
    assert "number of heads" in load_error(path)


def test_a_plain_vit_may_have_other_metadata(tmp_path, weights):
    save_file(weights, tmp_path / "m.safetensors", metadata={"source": "mine"})
    assert vit.load(str(tmp_path / "m.safetensors")).dim == 128


def test_weights_of_another_architecture_give_a_one_line_error(tmp_path):
    small = vit.Architecture(dim=24, depth=1, heads=3)
    large = vit.Architecture(dim=48, depth=1, heads=3)
    vit.save(tmp_path / "m.safetensors", vit.build(small), large)
    assert "does not match its own architecture" in load_error(tmp_path / "m.safetensors")


STEM_VIT = vit.Architecture(side=24, dim=12, depth=1, heads=3, stem=(4, 4, 4, 4))
SIZES = asdict(STEM_VIT)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[]", "metadata = []: "),
        ("null", "metadata = None: "),
        ("", "metadata = ''"),
        ("{", "metadata = '{'"),
        ("[" * 100_000, "metadata = '"),
        (json.dumps(SIZES | {"heads": 0}), "heads = 0: Input should be greater than or equal to 1"),
        (json.dumps(SIZES | {"heads": 5}), "dim 12 is not a multiple of its 5 heads"),
        (json.dumps(SIZES | {"depth": -1}), "depth = -1: "),
        (json.dumps(SIZES | {"depth": "\x1b[31m"}), r"depth = '\x1b[31m': "),
        (json.dumps(SIZES | {"dim": 10**30}), "dim = 10000"),
        (json.dumps(SIZES | {"dim": 60000}), "has wrong shapes: "),
        (json.dumps(SIZES | {"stem": 4}), "stem = 4: "),
        (json.dumps(SIZES | {"stem": [4]}), "stem, kernels and strides differ in length"),
        (json.dumps(SIZES | {"colour": 4}), "colour = 4: "),
    ],
)
def test_wrong_metadata_gives_a_one_line_error(tmp_path, metadata, message):
    path = tmp_path / "vit.safetensors"
    save_file(vit.build(STEM_VIT).state_dict(), path, metadata={"architecture": metadata})
    with pytest.raises(ValueError, match=re.escape(message)) as error_info:
        vit.load(str(path))
    text = str(error_info.value)
    assert text.startswith(f"{path} does not match its own architecture: ")
    assert text.isprintable()
    assert len(text) < len(str(path)) + 400


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("kind", ["plain", "small"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, weights, kind, value):
    path = tmp_path / "vit.safetensors"
    model = vit.build(STEM_VIT)
    if kind == "plain":
        weights["blocks.1.norm1.bias"][3] = value
        save_file(weights, path)
    else:
        with torch.no_grad():
            model.blocks[0].norm1.bias[3] = value
        vit.save(path, model, STEM_VIT)
    name = {"plain": "blocks.1.norm1.bias", "small": "blocks.0.norm1.bias"}[kind]
    with pytest.raises(ValueError, match=f"NaN or infinite weights: vit.{name}"):
        vit.load(str(path))


def test_full_checkpoints_of_dino_load(tmp_path, weights):
    teacher = {f"backbone.{name}": weight for name, weight in weights.items()} | {"head.mlp.0.bias": torch.zeros(4)}
    content = {"teacher": teacher, "epoch": 9, "args": Namespace(arch="vit_small")}
    assert vit.load(save_pth(tmp_path / "m.pth", content)).dim == 128


class Harmful:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, weights, zipped):
    path = tmp_path / "m.pth"
    content = {"teacher": weights, "args": Harmful(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "contains executable pickle code" in load_error(path)
    assert not (tmp_path / "ran").exists()


# Images of any size


def resample(weights, rows, columns, **settings):
    """Position embeddings for another grid, the class token's first; by default as timm does."""
    positions = weights["pos_embed"]
    square = positions[:, 1:].unflatten(1, (TINY["grid"], TINY["grid"])).permute(0, 3, 1, 2)
    if not settings:
        settings = {"size": (rows, columns), "antialias": True}
    resampled = F.interpolate(square, mode="bicubic", **settings)
    assert resampled.shape[2:] == (rows, columns)
    return torch.cat((positions[:, :1], resampled.flatten(2).transpose(1, 2)), 1)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (24, 40), (64, 32), (53, 79), (8, 8)])
def test_position_embeddings_are_resampled_antialiased(backbone, weights, height, width):
    """To the grid of whole patches; the remainder at the right and the bottom is cut."""
    rows = height // 8
    columns = width // 8
    pixels = random_images(height, width)
    tokens = backbone(pixels)
    assert tokens.patches.shape == (2, rows, columns, 128)
    cut = pixels[..., : rows * 8, : columns * 8]
    expected = expected_tokens(weights, cut, heads=2, positions=resample(weights, rows, columns))
    # timm resamples in float32: sums of 16 products (more where the grid shrinks), then the network on top.
    assert_close(all_tokens(tokens).float(), expected.float(), roundings=1000)


def resample_like_dino(weights, rows, columns):
    """`interpolate_pos_encoding` of DINO's vision_transformer.py: no antialiasing, and 0.1 against rounding."""
    scale = ((rows + 0.1) / TINY["grid"], (columns + 0.1) / TINY["grid"])
    return resample(weights, rows, columns, scale_factor=scale)


@pytest.mark.parametrize(("rows", "columns", "expected"), [(9, 12, 0.10), (3, 4, 0.39)])
def test_dinos_own_resampling_differs(weights, rows, columns, expected):
    """For normal noise by a tenth of its standard deviation if the grid grows, and by four tenths if it shrinks."""
    noise = weights | {"pos_embed": torch.randn(1, 37, 128)}
    difference = resample(noise, rows, columns) - resample_like_dino(noise, rows, columns)
    assert difference[:, 1:].std().item() == pytest.approx(expected, abs=0.02)
    assert difference[:, 0].abs().max() == 0  # the class token's


def bicubic(distance, a):
    """Keys' kernel within one pixel of its center."""
    return (a + 2) * distance**3 - (a + 3) * distance**2 + 1


def test_the_kernel_of_resampling_is_pillows(tmp_path):
    """By hand: a ViT whose blocks add nothing returns its position embeddings, up to the last norm."""
    weights = {name: torch.zeros(shape) for name, shape in dino_shapes(**TINY).items()}
    weights["norm.weight"] += 1
    grid = weights["pos_embed"][0, 1:].unflatten(0, (6, 6))
    grid[..., 2::2], grid[..., 3::2] = 1, -1
    grid[2, :, 0], grid[2, :, 1] = 1, -1  # one row differs in the first two features
    backbone = vit.load(save_pth(tmp_path / "m.pth", weights))
    patches = backbone(random_images(96, 48, 1)).patches[0]  # twice the rows: row 4 lies 0.25 above the old row 2
    expected = [bicubic(0.25, a=-0.5)] * 6
    # Float32: 16 products, a norm over 128 features and a division, or some 40 times eps; the kernels differ by 0.01.
    assert (patches[4, :, 0] / patches[4, :, 2]).tolist() == pytest.approx(expected, abs=5e-6)
    assert (patches[5, :, 0] / patches[5, :, 2]).tolist() == pytest.approx(expected, abs=5e-6)
    assert bicubic(0.25, a=-0.5) == 0.8671875
    assert bicubic(0.25, a=-0.75) == 0.87890625


# timm models with register tokens, without a class token, with rotary positions

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
DINOV2 = ("vit_small_patch14_reg4_dinov2", {"img_size": 70})
DINOV3 = ("vit_small_patch16_dinov3", {})
DINOV3_BIASED = ("vit_small_patch16_dinov3_qkvb", {})
SIGLIP = ("vit_base_patch16_siglip_224", {})
MODELS = [(DINOV2, 14, 5), (DINOV3, 16, 5), (DINOV3_BIASED, 16, 5), (SIGLIP, 16, 0)]


def untrained_timm(name, settings, kind=vit.Backbone):
    """A shrunk timm model with weights large enough for tokens to differ, and biases other than 0."""
    options = {"pretrained": False, "num_classes": 0, "dynamic_img_size": True, **SMALL, **settings}
    network = timm.create_model(name, **options)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return kind(network)


@pytest.mark.parametrize(("model", "patch", "prefix"), MODELS)
def test_patches_exclude_prefix_tokens_and_form_the_grid_of_the_image(model, patch, prefix):
    backbone = untrained_timm(*model)
    pixels = random_images(3 * patch + 5, 5 * patch + 1)
    tokens = backbone(pixels)
    assert backbone.patch == (patch, patch)
    assert tokens.patches.shape == (2, 3, 5, 64)
    cut = vit.normalize(pixels[..., : 3 * patch, : 5 * patch], backbone.mean, backbone.std)
    with torch.no_grad():
        expected = backbone.vit.forward_features(cut)
    assert expected.shape == (2, prefix + 15, 64)
    assert torch.equal(tokens.patches.flatten(1, 2), expected[:, prefix:])
    if prefix:
        assert torch.equal(tokens.class_token, expected[:, 0])
    else:
        assert tokens.class_token is None
        assert not backbone.has_class_token


def test_mean_and_std_of_the_model_are_used():
    """SigLIP's are 0.5 throughout."""
    siglip = untrained_timm(*SIGLIP)
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5)
    assert untrained_timm(*DINOV3).mean == MEAN


def values_of(attention, x):
    """`(B, heads, tokens, width)`, for both attention classes of timm."""
    bias = attention.qkv.bias
    if bias is None and attention.q_bias is not None:  # EVA has no bias for keys
        bias = torch.cat((attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, bias)
    return qkv.unflatten(-1, (3, attention.num_heads, -1))[:, :, 2].transpose(1, 2)


@pytest.mark.parametrize(("model", "patch", "prefix"), MODELS)
def test_captured_weights_explain_the_output_of_each_layer(model, patch, prefix):
    """The output of every attention layer is computed again from the weights, which include rotary positions."""
    backbone = untrained_timm(*model, kind=Float64Backbone)
    pixels = random_images(3 * patch, 5 * patch)
    inputs = {}
    outputs = {}

    def record(index, _, args, output):
        inputs[index] = args[0]
        outputs[index] = output

    handles = [
        block.attn.register_forward_hook(partial(record, index)) for index, block in enumerate(backbone.vit.blocks)
    ]
    before = backbone(pixels)
    for handle in handles:
        handle.remove()
    captured = {}
    backbone.capture_attention(pixels, lambda index, weights: captured.update({index: weights}))
    assert list(captured) == [0, 1]
    for index, weights in captured.items():
        assert weights.shape == (2, 2, prefix + 15, prefix + 15)
        assert_close(weights.sum(-1), torch.ones(2, 2, prefix + 15, dtype=torch.float64))
        attention = backbone.vit.blocks[index].attn
        mixed = (weights @ values_of(attention, inputs[index])).transpose(1, 2).flatten(2)
        assert_close(attention.proj(attention.norm(mixed)), outputs[index])
        assert_close(backbone.attention(pixels, index), weights)  # the earlier blocks are fused then
        assert weights.std() > 0.01
    assert torch.equal(before.patches, backbone(pixels).patches)


@pytest.mark.parametrize("model", [DINOV2, DINOV3])
def test_capturing_attention_leaves_the_model_unchanged(model):
    """Also for a single block, and if the callback raises or writes to the weights."""
    backbone = untrained_timm(*model)
    pixels = random_images(32, 48)
    indices = []
    before = backbone(pixels).patches
    fused = [block.attn.fused_attn for block in backbone.vit.blocks]
    backbone.capture_attention(pixels, lambda index, _: indices.append(index), [1])
    assert indices == [1]

    def overwrite(index, weights):
        weights.zero_()  # against the rules: what the block reads
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backbone.capture_attention(pixels, overwrite)
    assert torch.equal(backbone(pixels).patches, before)
    assert [block.attn.fused_attn for block in backbone.vit.blocks] == fused
    assert not any(module._forward_hooks for module in backbone.modules())
    with pytest.raises(IndexError):
        backbone.attention(pixels, 2)


# Names of sources


@pytest.mark.parametrize(
    ("source", "is_file", "name", "displayed"),
    [
        ("vit_small_patch16_224.dino", False, ("vit_small_patch16_224.dino", None), "vit_small_patch16_224.dino"),
        ("vit_small.dino@abc1", False, ("vit_small.dino", "abc1"), "vit_small.dino"),
        ("Salesforce/blip@main", False, ("Salesforce/blip", "main"), "Salesforce/blip"),
        ("Salesforce/blip@", False, ("Salesforce/blip", None), "Salesforce/blip"),
        ("data/checkpoints/blip_scenes", False, ("data/checkpoints/blip_scenes", None), "data/checkpoints/blip_scenes"),
        ("mine/dino.pth", True, None, "mine/dino.pth"),
        ("model.safetensors", True, None, "model.safetensors"),
        ("at@home/m.pt", True, None, "at@home/m.pt"),
        ("https://a.org/b/c.pth", True, None, "c.pth"),
        (f"https://a.org/b/c.bin#sha256={'0' * 64}&size=3", True, None, "c.bin"),
    ],
)
def test_sources_by_kind(source, is_file, name, displayed):
    assert is_checkpoint_file(source) is is_file
    assert name is None or split_revision(source) == name
    assert display_name(source) == displayed


def test_only_names_are_searched_on_the_hub(monkeypatch):
    """A source with the suffix of a checkpoint file is a file, even if it does not exist."""
    monkeypatch.setattr(timm, "create_model", partial(pytest.fail, "timm was called"))
    with pytest.raises(FileNotFoundError, match="no backbone checkpoint at vit_small_patch16_224.pth"):
        vit.load("vit_small_patch16_224.pth")
    with pytest.raises(ValueError, match="no_such_tag"):
        vit.load("vit_small_patch16_224.no_such_tag@main")
    with pytest.raises(ValueError, match="timm has no weights for 'test_vit4' on the hub"):
        vit.load("test_vit4")
