"""CATR: key for key the published layout, number for number the published order of steps, cached or not."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from stages.models import catr
from stages.models.catr import Catr, CatrConfig
from stages.models.catr_transformer import sine_positions

TINY = CatrConfig(
    hidden=64,
    heads=2,
    encoder_layers=2,
    decoder_layers=3,
    feedforward=96,
    inner=48,
    vocabulary=110,
    blocks=(1, 1, 1, 1),
)


def untrained(config=TINY):
    """Weights large enough for each token and cell to matter, batch norm with statistics of its own."""
    torch.manual_seed(1)
    model = Catr(config)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith("running_var"):
                weight.uniform_(0.5, 2)
            elif name.startswith("backbone") and weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif name.startswith("mlp") and weight.dim() == 2:
                weight.mul_(6)
            elif weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "in_proj" in name:
                weight.mul_(3)
        model.transformer["embeddings"].position_embeddings.weight.normal_()
        model.transformer["embeddings"].word_embeddings.weight.normal_()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return untrained()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 70, 52, generator=torch.Generator().manual_seed(2))  # cells: 5x4


@pytest.fixture(scope="module")
def memory(model, images):
    return model.memory(images)


# The published order of steps, on torch's own modules. github.com/saahiluppal/catr: models/caption.py (Caption,
# MLP), models/transformer.py (forward_pre of both layers, DecoderEmbeddings), models/backbone.py.


@cache
def part(model, prefix):
    """Weights under a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in model.state_dict().items() if name.startswith(prefix)}


@cache
def attention(model, prefix):
    module = nn.MultiheadAttention(64, 2, batch_first=True).eval().requires_grad_(False)
    module.load_state_dict(part(model, prefix + "."))
    return module


def attend(model, prefix, query, key, value, **masks):
    """Mixed values, and each head's weights."""
    return attention(model, prefix)(query, key, value, average_attn_weights=False, **masks)


def norm(model, prefix, x, eps=1e-5):
    weights = part(model, prefix + ".")
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"], eps)


def linear(model, prefix, x):
    weights = part(model, prefix + ".")
    return F.linear(x, weights["weight"], weights["bias"])


def feedforward(model, layer, x):
    return linear(model, layer + ".linear2", F.relu(linear(model, layer + ".linear1", x)))


def expected_grid(model, pixels):
    """Torchvision's own ResNet with ordinary batch norm in eval mode, then the 1x1 convolution."""
    resnet = ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, False, True]).eval()
    found = resnet.load_state_dict(part(model, "backbone.0.body."), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in found.missing_keys)
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
    x = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    weights = part(model, "input_proj.")
    return F.conv2d(x, weights["weight"], weights["bias"]).detach()


def expected_positions(padding):
    """`(B, cells, 64)` of `padding` `(B, rows, columns)`, cell by cell from the formula."""
    found = torch.zeros(*padding.shape, 64)
    for image, row, column in np.ndindex(*padding.shape):
        inside = ~padding[image]
        lengths = inside[:, column].sum().item(), inside[row].sum().item()
        counts = inside[: row + 1, column].sum().item(), inside[row, : column + 1].sum().item()
        for axis, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            for feature in range(32):
                angle = 2 * math.pi * count / (length + 1e-6) / 10000 ** (feature // 2 * 2 / 32)
                found[image, row, column, 32 * axis + feature] = (math.cos if feature % 2 else math.sin)(angle)
    return found.flatten(1, 2)


def expected_memory(model, grid, padding):
    """Encoder output `(B, cells, hidden)` of `grid` `(B, hidden, rows, columns)`."""
    x, positions, masked = grid.flatten(2).transpose(1, 2), expected_positions(padding), padding.flatten(1)
    for number in range(TINY.encoder_layers):
        layer = f"transformer.encoder.layers.{number}"
        normed = norm(model, layer + ".norm1", x)
        query = normed + positions
        x = x + attend(model, layer + ".self_attn", query, query, normed, key_padding_mask=masked)[0]
        x = x + feedforward(model, layer, norm(model, layer + ".norm2", x))
    return norm(model, "transformer.encoder.norm", x)


def expected_logits(model, memory, padding, tokens, unread):
    """Logits `(B, n, vocabulary)` and each decoder layer's weights over the cells."""
    n, positions, masked = tokens.shape[1], expected_positions(padding), padding.flatten(1)
    words = part(model, "transformer.embeddings.")
    places = words["position_embeddings.weight"][:n]
    x = norm(model, "transformer.embeddings.LayerNorm", words["word_embeddings.weight"][tokens] + places, eps=1e-12)
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    looked = []
    for number in range(TINY.decoder_layers):
        layer = f"transformer.decoder.layers.{number}"
        normed = norm(model, layer + ".norm1", x)
        query = normed + places
        x = x + attend(model, layer + ".self_attn", query, query, normed, attn_mask=future, key_padding_mask=unread)[0]
        query = norm(model, layer + ".norm2", x) + places
        found, weights = attend(
            model, layer + ".multihead_attn", query, memory + positions, memory, key_padding_mask=masked
        )
        x = x + found
        looked.append(weights)
        x = x + feedforward(model, layer, norm(model, layer + ".norm3", x))
    x = norm(model, "transformer.decoder.norm", x)
    for number in range(2):
        x = F.relu(linear(model, f"mlp.layers.{number}", x))
    return linear(model, "mlp.layers.2", x), looked


def unpadded(grid):
    return torch.zeros(grid.shape[0], *grid.shape[2:], dtype=torch.bool)


def texts(rows, n, seed=3):
    """Random tokens behind a start."""
    tokens = torch.randint(1, TINY.vocabulary, (rows, n), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = TINY.start
    return tokens


def close(found, expected, within=1e-5):
    torch.testing.assert_close(found, expected, atol=within, rtol=within)


def pair(prefix):
    return [f"{prefix}.weight", f"{prefix}.bias"]


def attention_keys(prefix):
    return [f"{prefix}.in_proj_weight", f"{prefix}.in_proj_bias", *pair(f"{prefix}.out_proj")]


def resnet_keys(blocks):
    """Names in a ResNet of bottlenecks with frozen batch norm: a convolution has no bias, a norm has four buffers."""

    def convolution(conv, frozen):
        return [f"{conv}.weight", *pair(frozen), f"{frozen}.running_mean", f"{frozen}.running_var"]

    keys = convolution("conv1", "bn1")
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            for number in (1, 2, 3):
                keys += convolution(f"layer{stage}.{block}.conv{number}", f"layer{stage}.{block}.bn{number}")
        keys += convolution(f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1")
    return keys


def published_keys():
    keys = [f"backbone.0.body.{name}" for name in resnet_keys((3, 4, 23, 3))] + pair("input_proj")
    for number in range(6):
        layer = f"transformer.encoder.layers.{number}"
        keys += attention_keys(f"{layer}.self_attn")
        keys += [key for name in ("linear1", "linear2", "norm1", "norm2") for key in pair(f"{layer}.{name}")]
        layer = f"transformer.decoder.layers.{number}"
        keys += attention_keys(f"{layer}.self_attn") + attention_keys(f"{layer}.multihead_attn")
        keys += [key for name in ("linear1", "linear2", "norm1", "norm2", "norm3") for key in pair(f"{layer}.{name}")]
    keys += pair("transformer.encoder.norm") + pair("transformer.decoder.norm")
    embeddings = "transformer.embeddings"
    keys += [f"{embeddings}.word_embeddings.weight", f"{embeddings}.position_embeddings.weight"]
    keys += pair(f"{embeddings}.LayerNorm")
    return keys + [key for number in range(3) for key in pair(f"mlp.layers.{number}")]


def test_the_published_size_has_the_published_keys():
    """
    Entries. ResNet-101: 1 + 3 * 33 + 4 = 104 convolutions, each with a norm of four: 520. Projection 2. Encoder
    6 * 12 + 2 = 74, decoder 6 * 18 + 2 = 110, embeddings 4, output 6: 716.

    Numbers. Norms of the ResNet: 64 + 3 * 128 + 4 * 256 + 23 * 512 + 3 * 1024 inner and 3 * 256 + 4 * 512 + 23 * 1024
    + 3 * 2048 outer channels, 256 + 512 + 1024 + 2048 of shortcuts: 52,672, four buffers each: 210,688. Convolutions:
    ResNet-101's known 44,549,160 less 2 * 52,672 of norms and 2,049,000 of the classifier: 42,394,816. Projection
    2048 * 256 + 256 = 524,544. One attention 4 * (256 * 256 + 256) = 263,168, feedforward 2 * 256 * 2048 + 2048 + 256
    = 1,050,880, norm 512: encoder 6 * (263,168 + 1,050,880 + 2 * 512) + 512 = 7,890,944, decoder
    6 * (2 * 263,168 + 1,050,880 + 3 * 512) + 512 = 9,473,024. Embeddings (30,522 + 128) * 256 + 512 = 7,846,912.
    Output (256 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * 30,522 = 16,052,026.
    """
    with torch.device("meta"):
        model = Catr(CatrConfig())
    state = model.state_dict()
    assert len(state) == 716
    assert sorted(state) == sorted(published_keys())
    weights = 42_394_816 + 524_544 + 7_890_944 + 9_473_024 + 7_846_912 + 16_052_026
    assert sum(weight.numel() for weight in model.parameters()) == weights == 84_182_266
    assert sum(weight.numel() for weight in state.values()) == weights + 210_688
    # nn.MultiheadAttention's shapes
    assert state["transformer.decoder.layers.5.multihead_attn.in_proj_weight"].shape == (768, 256)
    assert (model.start, model.end, model.pad) == (101, 102, 0)


def test_a_cell_begins_every_16_pixels(model):
    for height, width in ((64, 64), (65, 33), (17, 80)):
        found = model.memory(torch.zeros(1, 3, height, width))
        assert found.shape == (1, math.ceil(height / 16), math.ceil(width / 16), 64)


def test_an_undilated_cell_begins_every_32_pixels():
    assert untrained(replace(TINY, dilation=False)).memory(torch.zeros(1, 3, 65, 64)).shape == (1, 3, 2, 64)


def test_heads_must_share_hidden_evenly():
    with pytest.raises(ValueError, match="hidden 64"):
        CatrConfig(hidden=64, heads=5)


def test_sine_positions_of_two_cells():
    """One row, two columns: the row is a full turn, columns half a turn and a full one; waves 1 and 100."""
    found = sine_positions(torch.ones(1, 1, 2, dtype=torch.bool), 8)
    turn, slow, half = (0, 1), (math.sin(math.tau / 100), math.cos(math.tau / 100)), (0, -1)
    slower = (math.sin(math.pi / 100), math.cos(math.pi / 100))
    close(found, torch.tensor([[[[*turn, *slow, *half, *slower], [*turn, *slow, *turn, *slow]]]]), 1e-5)
    assert sine_positions(torch.ones(1, 1, 2, dtype=torch.bool), 4, torch.float64).dtype == torch.float64


def test_memory_is_the_published_encoder(model, images, memory):
    grid = expected_grid(model, images)
    assert memory.shape == (3, 5, 4, 64)
    close(model.features(images).permute(0, 3, 1, 2), grid)
    close(memory.flatten(1, 2), expected_memory(model, grid, unpadded(grid)))


def test_logits_are_the_published_decoder(model, memory):
    tokens = texts(3, 9)
    none = torch.zeros(3, 5, 4, dtype=torch.bool)
    found, _ = expected_logits(model, memory.flatten(1, 2), none, tokens, torch.zeros(3, 9, dtype=torch.bool))
    assert found.std() > 0.5  # or else next to nothing could be told apart
    close(model.logits(tokens, memory), found[:, -1])
    close(model.logits(tokens[:, :1], memory), found[:, 0])


def padded_batch():
    """Features of 3x2 and 5x4 cells, the first one's padding full of numbers, and the mask in pixels."""
    random = torch.Generator().manual_seed(4)
    features = torch.randn(2, 5, 4, 64, generator=random)
    mask = torch.ones(2, 80, 64, dtype=torch.bool)
    mask[0, :48, :32] = False
    mask[1] = False
    return features, mask


def test_padding_changes_nothing_behind_the_convolutions(model):
    features, mask = padded_batch()
    alone, tokens = features[:1, :3, :2], texts(2, 6)
    encoded = model.encode(features, mask)
    close(encoded[:1, :3, :2], model.encode(alone), 1e-4)
    close(encoded[1:], model.encode(features[1:]), 1e-4)
    found = model.logits(tokens, encoded, mask)
    close(found[:1], model.logits(tokens[:1], model.encode(alone)), 1e-4)
    looked = model.cross_attention(tokens, encoded, mask=mask).unflatten(-1, (5, 4))
    assert looked[0, :, :, 3:].abs().max() == 0
    assert looked[0, ..., 2:].abs().max() == 0
    close(looked[:1, :, :, :3, :2].flatten(3), model.cross_attention(tokens[:1], model.encode(alone)), 1e-4)


def test_a_padded_batch_is_the_published_one(model):
    """From the pixels on, with sides that are no multiple of a cell; only near to the image alone, as `memory` says."""
    pixels, mask = torch.randn(2, 3, 75, 64), torch.zeros(2, 75, 64, dtype=torch.bool)
    mask[0, 41:], mask[0, :, 30:] = True, True
    pixels[0].masked_fill_(mask[0], 0)
    grid = expected_grid(model, pixels)
    padding = F.interpolate(mask[None].float(), size=grid.shape[-2:])[0].bool()
    found = model.memory(pixels, mask)
    close(found.flatten(1, 2), expected_memory(model, grid, padding))
    alone = model.memory(pixels[:1, :, :41, :30])
    assert (found[0, :3, :2] - alone[0]).abs().max() > 1e-3


def published_greedy(model, memory):
    """As predict.py goes about it: 128 places from the start, padding masked, the last token at place 127."""
    tokens = torch.full((1, 128), TINY.pad)
    unread = torch.ones(1, 128, dtype=torch.bool)
    tokens[:, 0], unread[:, 0] = TINY.start, False
    padding = torch.zeros(1, 5, 4, dtype=torch.bool)
    for place in range(127):
        logits, _ = expected_logits(model, memory.flatten(1, 2), padding, tokens, unread)
        chosen = logits[0, place].argmax().item()
        if chosen == TINY.end:
            break
        tokens[:, place + 1], unread[:, place + 1] = chosen, False
    return tokens[0, : int((~unread).sum())].tolist()


def cached_greedy(model, memory):
    cache, tokens = model.new_cache(memory), [model.start]
    while len(tokens) < 128:
        chosen = model.read(torch.tensor([tokens[-1:]]), cache, torch.tensor([0])).argmax().item()
        if chosen == model.end:
            break
        tokens.append(chosen)
    return tokens


def test_greedy_texts_are_the_published_ones(model, memory):
    found = [cached_greedy(model, one[None]) for one in memory]
    assert found == [published_greedy(model, one[None]) for one in memory]
    assert len({tuple(text) for text in found}) > 1
    assert max(len(set(text)) for text in found) > 5  # no single word over and over


@pytest.mark.parametrize(("precision", "within"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_reading_step_by_step_equals_reading_anew(memory, precision, within):
    """Two, none and three rows of an image; then some are dropped and some doubled; two tokens at a time, too."""
    model, memory = untrained().to(precision), memory.to(precision)
    images_of, tokens = torch.tensor([0, 0, 2, 2, 2]), texts(5, 14)
    cache, read = model.new_cache(memory), 0
    assert cache.rows is None
    for until, kept in ((1, None), (2, None), (5, [0, 2, 4]), (6, [0, 0, 1, 2, 2]), (7, [4]), (9, None), (14, None)):
        if kept is not None:
            cache.select(torch.tensor(kept))
            images_of = images_of[kept]
            tokens = torch.cat((tokens[kept, :read], texts(len(kept), 14, seed=until)[:, read:]), 1)
        found = model.read(tokens[:, read:until], cache, images_of)
        read = until
        assert (cache.rows, cache.length, cache.images) == (len(tokens), until, 3)
        close(found, model.logits(tokens[:, :until], memory[images_of]), within)


def test_an_image_keeps_its_keys_once(model, memory):
    """Whatever is selected, cross-attention holds keys of three images, the very same ones."""
    cache = model.new_cache(memory)
    before = [(layer.image_keys, layer.image_values) for layer in cache.layers]
    model.read(texts(3, 1), cache, torch.arange(3))
    cache.select(torch.arange(3).repeat_interleave(7))
    model.read(texts(21, 1), cache, torch.arange(3).repeat_interleave(7))
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert layer.image_keys is keys and layer.image_values is values
        assert keys.shape == values.shape == (3, 2, 20, 32)


def test_what_does_not_fit_is_refused(model, memory):
    cache = model.new_cache(memory)
    with pytest.raises(ValueError, match="sorted by image"):
        model.read(texts(3, 1), cache, torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match="3 rows of tokens, 2 images"):
        model.read(texts(3, 1), cache, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="129 tokens.*128"):
        model.logits(texts(3, 129), memory)
    model.read(texts(3, 128), cache, torch.arange(3))
    with pytest.raises(ValueError, match="129 tokens.*128"):
        model.read(texts(3, 1), cache, torch.arange(3))
    with pytest.raises(ValueError, match="2 rows of tokens, 2 images, 3 rows in the cache"):
        model.read(texts(2, 1), cache, torch.arange(2))
    with pytest.raises(IndexError):
        model.cross_attention(texts(3, 4), memory, layer=3)


def test_double_precision_agrees(model, memory):
    exact = untrained().double()
    tokens = texts(3, 8)
    found = exact.logits(tokens, memory.double())
    assert found.dtype == torch.float64
    close(found.float(), model.logits(tokens, memory), 1e-4)
    close(exact.read(tokens, exact.new_cache(memory.double()), torch.arange(3)), found, 1e-12)


def test_cross_attention_is_what_the_decoder_mixes_with(model, memory):
    """The reference's weights are those of the modules whose output makes the logits."""
    tokens, none = texts(3, 7), torch.zeros(3, 5, 4, dtype=torch.bool)
    _, expected = expected_logits(model, memory.flatten(1, 2), none, tokens, torch.zeros(3, 7, dtype=torch.bool))
    for layer in (0, 1, 2, -1):
        found = model.cross_attention(tokens, memory, layer)
        assert found.shape == (3, 2, 7, 20)
        close(found.sum(-1), torch.ones(3, 2, 7))
        close(found, expected[layer])
    close(model.cross_attention(tokens, memory), expected[-1])
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("wrapped", [True, False])
def test_load_finds_sizes_and_weights(tmp_path, model, memory, images, wrapped):
    config = replace(TINY, blocks=(1, 2, 1, 1), positions=20, encoder_layers=1)
    other, path = untrained(config), tmp_path / "weights.pth"
    state = other.state_dict()
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 1.0}} if wrapped else state, path)
    found = catr.load(path)
    assert found.config == config
    assert not found.training and not any(weight.requires_grad for weight in found.parameters())
    tokens = texts(3, 5)
    close(found.logits(tokens, found.memory(images)), other.logits(tokens, other.memory(images)), 0)


def fault(tmp_path, held):
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as found:
        catr.load(tmp_path / "weights.pth")
    assert "weights.pth" in str(found.value) and "\n" not in str(found.value)
    return str(found.value)


def test_keys_that_do_not_fit_are_named(tmp_path, model):
    state = dict(model.state_dict())
    del state["transformer.encoder.norm.bias"]
    for number in range(7):
        state[f"extra.{number}"] = torch.zeros(1)
    state["mlp.layers.1.bias"] = torch.zeros(47)
    found = fault(tmp_path, {"model": state})
    assert "1 missing: transformer.encoder.norm.bias" in found
    assert "7 left over: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more" in found and "extra.5" not in found
    assert "1 of another shape: mlp.layers.1.bias (47,) for (48,)" in found


def test_other_files_are_refused(tmp_path, model):
    assert "715 missing" in fault(tmp_path, {"input_proj.bias": torch.zeros(256)})
    assert "holds a list" in fault(tmp_path, [torch.zeros(1)])
    assert "other things than tensors: epoch" in fault(tmp_path, {"model": {"epoch": 3}})
    assert "no multiple of 32" in fault(
        tmp_path, model.state_dict() | {"input_proj.weight": torch.zeros(48, 2048, 1, 1)}
    )
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="no file of tensors"):
        catr.load(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError):
        catr.load(tmp_path / "none.pth")


class Harmful:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_in_a_checkpoint_is_run(tmp_path, model):
    found = fault(tmp_path, {"model": model.state_dict(), "args": Harmful(tmp_path / "ran")})
    assert "no file of tensors" in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (299, 224)),  # 224.25
        ((375, 500), (224, 299)),
        ((640, 427), (299, 199)),  # 199.48
        ((100, 60), (299, 179)),  # 179.4: small ones grow
        ((275, 275), (298, 298)),  # 275 * (299 / 275) falls short of 299 in double precision
    ],
)
def test_pixels_have_the_published_size(size, expected):
    found = catr.preprocess(Image.new("RGB", size))
    assert found.shape == (3, expected[1], expected[0]) and found.dtype == torch.float32
    assert (found == -1).all()


def test_pixels_have_the_published_values():
    """Grey images become three channels; 0..255 goes to -1..1; in between, bicubic as Pillow does by default."""
    gray = Image.fromarray(np.random.default_rng(5).integers(0, 256, (299, 150), dtype=np.uint8))
    found = catr.preprocess(gray)
    close(found, torch.from_numpy(np.array(gray)).float().div(127.5).sub(1).expand(3, -1, -1), 1e-6)
    colors = Image.fromarray(np.random.default_rng(6).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    expected = torch.from_numpy(np.array(colors.resize((299, 224)))).permute(2, 0, 1).float().div(127.5).sub(1)
    close(catr.preprocess(colors), expected, 1e-6)


def test_an_image_with_nothing_left_is_refused():
    with pytest.raises(ValueError, match="1000x3"):
        catr.preprocess(Image.new("RGB", (1000, 3)))
