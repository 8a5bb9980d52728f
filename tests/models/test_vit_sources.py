"""ViTs of others: DINO's layout key for key and number for number, any image size, register tokens, sources' names."""

import math
from argparse import Namespace
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from stages.models import vit
from stages.params.model_source import display_name, is_checkpoint_file, split_revision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = {"dim": 128, "depth": 2, "patch": 8, "grid": 6}  # two heads


def layout(dim, depth, patch, grid):
    """Names and shapes of DINO's ViT (vision_transformer.py): qkv with bias, four times as wide inside."""

    def pair(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, grid * grid + 1, dim)}
    shapes |= pair("patch_embed.proj", dim, 3, patch, patch)
    for number in range(depth):
        block = f"blocks.{number}"
        shapes |= pair(f"{block}.norm1", dim) | pair(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= pair(f"{block}.attn.proj", dim, dim) | pair(f"{block}.norm2", dim)
        shapes |= pair(f"{block}.mlp.fc1", 4 * dim, dim) | pair(f"{block}.mlp.fc2", dim, 4 * dim)
    return shapes | pair("norm", dim)


def random(shapes, spread=0.1):
    """Weights of those shapes, norms around 1."""
    weights = {name: torch.randn(shape) * spread for name, shape in shapes.items()}
    return {name: one + 1 if "norm" in name and name.endswith("weight") else one for name, one in weights.items()}


def images(height, width, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def saved(path, held):
    torch.save(held, path)
    return str(path)


@pytest.fixture
def weights():
    return random(layout(**TINY))


@pytest.fixture
def backbone(tmp_path, weights):
    return vit.load(saved(tmp_path / "tiny.pth", weights))


# DINO's forward pass, on its own names


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def expected_tokens(weights, pixels, heads, places=None):
    """`(B, 1 + patches, dim)` of uint8 images; `places` are the position embeddings, the checkpoint's if not told."""
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, STD))
    patch = weights["patch_embed.proj.weight"]
    x = F.conv2d((pixels / 255 - mean) / std, patch, weights["patch_embed.proj.bias"], stride=patch.shape[2:])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x), 1)
    x = x + (weights["pos_embed"] if places is None else places)
    for number in range(len([name for name in weights if name.endswith("norm1.weight")])):
        block = f"blocks.{number}"
        qkv = linear(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", x))
        query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1) @ value
        x = x + linear(weights, f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x)))
        x = x + linear(weights, f"{block}.mlp.fc2", inner)
    return norm(weights, "norm", x)


def close(found, expected, within=1e-5):
    torch.testing.assert_close(found, expected, atol=within, rtol=within)


def all_tokens(tokens):
    return torch.cat((tokens.class_token[:, None], tokens.patches.flatten(1, 2)), 1)


def test_the_protocols_dino_has_its_keys_and_sizes_and_is_timms(tmp_path):
    """`dino_deitsmall16_pretrain.pth`: 150 tensors, 21,665,664 numbers, and timm's model of that name."""
    shapes = layout(384, 12, 16, 14)
    held = random(shapes, spread=0.03)
    assert (len(shapes), shapes["pos_embed"]) == (150, (1, 197, 384))
    assert sum(one.numel() for one in held.values()) == 21_665_664
    found = vit.load(saved(tmp_path / "dino_deitsmall16_pretrain.pth", held))
    assert {name: tuple(one.shape) for name, one in found.vit.state_dict().items()} == shapes
    assert (len(found.vit.blocks), found.heads, found.dim, found.patch) == (12, 6, 384, (16, 16))
    timms = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval()
    timms.load_state_dict(held)
    pixels = images(224, 224, 1)
    with torch.no_grad():
        expected = timms.forward_features(vit.normalize(pixels))
    close(all_tokens(found(pixels)), expected, 1e-6)
    close(timms.pretrained_cfg["mean"], found.mean)
    assert vit.weights_hash(found.vit) == vit.weights_hash(timms)


def test_the_protocols_classifier_has_its_keys_and_sizes():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224.augreg_in1k", pretrained=False)
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    assert shapes == layout(768, 12, 16, 14) | {"head.weight": (1000, 768), "head.bias": (1000,)}
    assert sum(math.prod(shape) for shape in shapes.values()) == 86_567_656


def test_the_forward_pass_is_dinos(backbone, weights):
    pixels = images(48, 48)
    found = backbone(pixels)
    expected = expected_tokens(weights, pixels, heads=2)
    close(all_tokens(found), expected)
    assert found.patches.shape == (2, 6, 6, 128)
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda bare: {"teacher": bare, "epoch": 3},
        lambda bare: {"model": bare},
        lambda bare: {"state_dict": {f"module.{name}": one for name, one in bare.items()}},
        lambda bare: {
            "teacher": {f"module.backbone.{name}": one for name, one in bare.items()}
            | {f"module.head.{name}": torch.zeros(4) for name in ("mlp.0.weight", "last_layer.weight_g")},
            "student": {"other": torch.zeros(1)},
        },
    ],
)
def test_a_trainings_wrapping_is_taken_off(tmp_path, weights, wrap):
    found = vit.load(saved(tmp_path / "wrapped.pth", wrap(weights)))
    assert found.vit.state_dict().keys() == weights.keys()
    assert all(torch.equal(one, weights[name]) for name, one in found.vit.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_file_may_be_of_any_of_the_kinds(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else saved(path, weights)
    assert torch.equal(vit.load(str(path)).vit.state_dict()["pos_embed"], weights["pos_embed"])


def test_half_precision_becomes_single(tmp_path, weights):
    halves = {name: one.half() for name, one in weights.items()}
    found = vit.load(saved(tmp_path / "m.pth", halves)).vit.state_dict()
    assert all(torch.equal(one, halves[name].float()) for name, one in found.items())


def refusal(path):
    with pytest.raises(ValueError) as caught:
        vit.load(str(path))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(name):
    return lambda weights: {key: one for key, one in weights.items() if key != name}


def instead(name, shape):
    return lambda weights: weights | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("blocks.1.attn.qkv.bias"), "Missing key.*blocks.1.attn.qkv.bias"),
        (without("norm.weight"), "Missing key.*norm.weight"),
        (without("pos_embed"), "no patch_embed.proj.weight, pos_embed or blocks"),
        (without("patch_embed.proj.weight"), "no patch_embed.proj.weight, pos_embed or blocks"),
        (instead("blocks.0.ls1.gamma", (128,)), "Unexpected key.*blocks.0.ls1.gamma"),
        (instead("blocks.1.mlp.fc1.weight", (512, 64)), "blocks.1.mlp.fc1.weight.*512, 64.*512, 128"),
        (instead("pos_embed", (1, 36, 128)), "pos_embed"),  # no class token's
        (lambda weights: {"model": {"layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}}, "is not a plain ViT"),
        (lambda weights: [weights], "holds a list; expected tensors by name"),
        (lambda weights: {"model": {**weights, "epoch": 3}}, "holds other things than tensors: epoch"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, weights, change, told):
    path = tmp_path / "m.pth"
    saved(path, change(weights))
    with pytest.raises(ValueError, match=told):
        vit.load(str(path))
    refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_a_file_is_one_line(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else saved(path, weights)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert "not a file of tensors" in refusal(path)


@pytest.mark.parametrize(
    "shapes",
    [
        {"pos_embed": (37,)},
        {"patch_embed.proj.weight": (128, 192)},
        {"patch_embed.proj.weight": (128, 3, 2, 8, 8)},  # of films
    ],
)
def test_shapes_of_other_models_are_one_line(tmp_path, weights, shapes):
    path = tmp_path / "m.pth"
    saved(path, weights | {name: torch.zeros(shape) for name, shape in shapes.items()})
    assert "is not a plain ViT" in refusal(path)


@pytest.mark.parametrize("dim", [200, 1280])
def test_a_width_whose_heads_cannot_be_told_is_refused(tmp_path, dim):
    path = tmp_path / "m.pth"
    saved(path, random(layout(dim, 1, 8, 2)))
    assert "heads" in refusal(path)


def test_a_plain_vit_may_have_metadata_of_its_own(tmp_path, weights):
    save_file(weights, tmp_path / "m.safetensors", metadata={"source": "mine"})
    assert vit.load(str(tmp_path / "m.safetensors")).dim == 128


def test_a_checkpoint_whose_architecture_is_anothers_is_one_line(tmp_path):
    small, large = vit.Architecture(dim=24, depth=1, heads=3), vit.Architecture(dim=48, depth=1, heads=3)
    vit.save(tmp_path / "m.safetensors", vit.build(small), large)
    refusal(tmp_path / "m.safetensors")


def test_dinos_full_checkpoints_load(tmp_path, weights):
    bare = {f"backbone.{name}": one for name, one in weights.items()}
    held = {"teacher": bare | {"head.mlp.0.bias": torch.zeros(4)}, "epoch": 9, "args": Namespace(arch="vit_small")}
    assert vit.load(saved(tmp_path / "m.pth", held)).dim == 128


class Harmful:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_is_run(tmp_path, weights, zipped):
    path = tmp_path / "m.pth"
    held = {"teacher": weights, "args": Harmful(tmp_path / "ran")}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    assert "contains executable pickle code" in refusal(path)
    assert not (tmp_path / "ran").exists()


# Images of any size


def resampled(weights, rows, columns, **settings):
    """A checkpoint's position embeddings at another grid, the class token's first."""
    own, grid = weights["pos_embed"], TINY["grid"]
    square = own[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    if not settings:
        settings = {"size": (rows, columns), "antialias": True}
    found = F.interpolate(square, mode="bicubic", **settings)
    assert found.shape[2:] == (rows, columns)
    return torch.cat((own[:, :1], found.flatten(2).transpose(1, 2)), 1)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (24, 40), (64, 32), (53, 79), (8, 8)])
def test_position_embeddings_are_resampled_antialiased(backbone, weights, height, width):
    """To the grid of whole patches; the remainder at the right and the bottom is cut."""
    rows, columns = height // 8, width // 8
    pixels = images(height, width)
    found = backbone(pixels)
    assert found.patches.shape == (2, rows, columns, 128)
    cut = pixels[..., : rows * 8, : columns * 8]
    close(all_tokens(found), expected_tokens(weights, cut, heads=2, places=resampled(weights, rows, columns)))


def dinos_own(weights, rows, columns):
    """`interpolate_pos_encoding` of DINO's vision_transformer.py: no antialiasing, and 0.1 against rounding."""
    scale = ((rows + 0.1) / TINY["grid"], (columns + 0.1) / TINY["grid"])
    return resampled(weights, rows, columns, scale_factor=scale)


@pytest.mark.parametrize(("rows", "columns", "expected"), [(9, 12, 0.10), (3, 4, 0.39)])
def test_dinos_own_resampling_differs(weights, rows, columns, expected):
    """On a grid of normal noise, by a tenth of its standard deviation where it grows, four tenths where it shrinks."""
    noise = weights | {"pos_embed": torch.randn(1, 37, 128)}
    off = resampled(noise, rows, columns) - dinos_own(noise, rows, columns)
    assert off[:, 1:].std().item() == pytest.approx(expected, abs=0.02)
    assert off[:, 0].abs().max() == 0  # the class token's


def bicubic(distance, a):
    """Keys' kernel within one pixel of its middle."""
    return (a + 2) * distance**3 - (a + 3) * distance**2 + 1


def test_the_kernel_is_pillows_by_hand(tmp_path):
    """A ViT whose blocks do nothing shows its position embeddings, up to the last norm."""
    weights = {name: torch.zeros(shape) for name, shape in layout(**TINY).items()}
    weights["norm.weight"] += 1
    grid = weights["pos_embed"][0, 1:].unflatten(0, (6, 6))
    grid[..., 2::2], grid[..., 3::2] = 1, -1
    grid[2, :, 0], grid[2, :, 1] = 1, -1  # one row stands out in the first two features
    backbone = vit.load(saved(tmp_path / "m.pth", weights))
    found = backbone(images(96, 48, 1)).patches[0]  # twice the rows: row 4 lies 0.25 above the old row 2
    assert (found[4, :, 0] / found[4, :, 2]).tolist() == pytest.approx([bicubic(0.25, a=-0.5)] * 6, abs=1e-5)
    assert (found[5, :, 0] / found[5, :, 2]).tolist() == pytest.approx([bicubic(0.25, a=-0.5)] * 6, abs=1e-5)
    assert bicubic(0.25, a=-0.5) == 0.8671875
    assert bicubic(0.25, a=-0.75) == 0.87890625


# timm's, with register tokens, without a class token, with rotary positions

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
DINOV2 = ("vit_small_patch14_reg4_dinov2", {"img_size": 70})
DINOV3 = ("vit_small_patch16_dinov3", {})
DINOV3_BIASED = ("vit_small_patch16_dinov3_qkvb", {})
SIGLIP = ("vit_base_patch16_siglip_224", {})
KINDS = [(DINOV2, 14, 5), (DINOV3, 16, 5), (DINOV3_BIASED, 16, 5), (SIGLIP, 16, 0)]


def timms(name, settings):
    """A shrunk model, its weights large enough for tokens to differ, and its biases not 0."""
    asked = {"pretrained": False, "num_classes": 0, "dynamic_img_size": True, **SMALL, **settings}
    network = timm.create_model(name, **asked)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return vit.Backbone(network)


@pytest.mark.parametrize(("kind", "patch", "prefix"), KINDS)
def test_patches_hold_no_other_tokens_and_have_the_images_grid(kind, patch, prefix):
    found = timms(*kind)
    pixels = images(3 * patch + 5, 5 * patch + 1)
    tokens = found(pixels)
    assert found.patch == (patch, patch)
    assert tokens.patches.shape == (2, 3, 5, 64)
    whole = vit.normalize(pixels[..., : 3 * patch, : 5 * patch], found.mean, found.std)
    with torch.no_grad():
        plain = found.vit.forward_features(whole)
    assert plain.shape == (2, prefix + 15, 64)
    assert torch.equal(tokens.patches.flatten(1, 2), plain[:, prefix:])
    if prefix:
        assert torch.equal(tokens.class_token, plain[:, 0])
    else:
        assert tokens.class_token is None and not found.has_class_token


def test_a_models_own_mean_and_std_are_used():
    """SigLIP's are 0.5 throughout."""
    found = timms(*SIGLIP)
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    assert timms(*DINOV3).mean == MEAN


def values_of(attention, x):
    """`(B, heads, tokens, width)`, as timm's two kinds of attention have them."""
    bias = attention.qkv.bias
    if bias is None and attention.q_bias is not None:  # EVA's keys have none
        bias = torch.cat((attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, bias)
    return qkv.unflatten(-1, (3, attention.num_heads, -1))[:, :, 2].transpose(1, 2)


@pytest.mark.parametrize(("kind", "patch", "prefix"), KINDS)
def test_the_weights_that_are_shown_are_those_that_a_block_mixes_with(kind, patch, prefix):
    """Each block's output is made again from what was shown; rotary positions are in it."""
    found, pixels, seen, shown = timms(*kind), images(3 * patch, 5 * patch), {}, {}
    handles = [
        block.attn.register_forward_hook(lambda _, asked, made, number=number: seen.update({number: (asked[0], made)}))
        for number, block in enumerate(found.vit.blocks)
    ]
    before = found(pixels)
    for handle in handles:
        handle.remove()
    found.capture_attention(pixels, lambda number, weights: shown.update({number: weights}))
    assert list(shown) == [0, 1]
    for number, weights in shown.items():
        assert weights.shape == (2, 2, prefix + 15, prefix + 15)
        close(weights.sum(-1), torch.ones(2, 2, prefix + 15))
        x, made = seen[number]
        attention = found.vit.blocks[number].attn
        mixed = (weights @ values_of(attention, x)).transpose(1, 2).flatten(2)
        close(attention.proj(attention.norm(mixed)), made)
        assert torch.equal(found.attention(pixels, number), weights)
        assert weights.std() > 0.01
    after = found(pixels)
    assert torch.equal(before.patches, after.patches)


@pytest.mark.parametrize("kind", [DINOV2, DINOV3])
def test_watching_leaves_nothing_behind(kind):
    """Some blocks only; and a note that raises takes its hooks away with it."""
    found, pixels, numbers = timms(*kind), images(32, 48), []
    before, fused = found(pixels).patches, [block.attn.fused_attn for block in found.vit.blocks]
    found.capture_attention(pixels, lambda number, _: numbers.append(number), [1])
    assert numbers == [1]

    def spoil(number, weights):
        weights.zero_()  # what it was given is not what the block goes on with
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.capture_attention(pixels, spoil)
    assert torch.equal(found(pixels).patches, before)
    assert [block.attn.fused_attn for block in found.vit.blocks] == fused
    assert not any(module._forward_hooks for module in found.modules())
    with pytest.raises(IndexError):
        found.attention(pixels, 2)


# Names of sources


@pytest.mark.parametrize(
    ("source", "file", "name", "known_as"),
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
def test_sources_by_kind(source, file, name, known_as):
    assert is_checkpoint_file(source) is file
    assert name is None or split_revision(source) == name
    assert display_name(source) == known_as


def test_only_a_name_is_looked_for_on_the_hub(monkeypatch):
    """What ends as a file does is one, there or not."""
    monkeypatch.setattr(timm, "create_model", partial(pytest.fail, "asked timm"))
    with pytest.raises(FileNotFoundError, match="no backbone checkpoint at vit_small_patch16_224.pth"):
        vit.load("vit_small_patch16_224.pth")
    with pytest.raises(ValueError, match="no_such_tag"):
        vit.load("vit_small_patch16_224.no_such_tag@main")
    with pytest.raises(ValueError, match="timm has no weights for 'test_vit4' on the hub"):
        vit.load("test_vit4")
