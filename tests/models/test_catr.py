"""CATR: the published keys, and in float64 the numbers of the published order of operations, cached or not."""

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from float_tolerance import assert_close
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_checkpoints import SMALL_CATR, untrained_catr
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from stages.models import blip, catr
from stages.models.catr import Catr, CatrConfig
from stages.models.catr_transformer import sine_positions


@pytest.fixture(scope="module")
def model():
    return untrained_catr().double()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, 70, 52, generator=generator, dtype=torch.float64)  # 5x4 cells


@pytest.fixture(scope="module")
def memory(model, images):
    return model.memory(images)


# The published order of operations, on torch's own modules. github.com/saahiluppal/catr: models/caption.py (Caption,
# MLP), models/transformer.py (forward_pre of both layers, DecoderEmbeddings), models/backbone.py.


@cache
def weights_of(model, prefix):
    """Weights under a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in model.state_dict().items() if name.startswith(prefix)}


@cache
def attention_module(model, prefix):
    module = nn.MultiheadAttention(64, 2, batch_first=True, dtype=torch.float64).eval().requires_grad_(False)
    module.load_state_dict(weights_of(model, prefix + "."))
    return module


def attend(model, prefix, query, key, value, **masks):
    """Mixed values, and the weights of each head."""
    return attention_module(model, prefix)(query, key, value, average_attn_weights=False, **masks)


def norm(model, prefix, x, eps=1e-5):
    weights = weights_of(model, prefix + ".")
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"], eps)


def linear(model, prefix, x):
    weights = weights_of(model, prefix + ".")
    return F.linear(x, weights["weight"], weights["bias"])


def feedforward(model, layer, x):
    return linear(model, layer + ".linear2", F.relu(linear(model, layer + ".linear1", x)))


def expected_grid(model, pixels):
    """Torchvision's own ResNet with ordinary batch norm in eval mode, then the 1x1 convolution."""
    resnet = ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, False, True]).double().eval()
    keys = resnet.load_state_dict(weights_of(model, "backbone.0.body."), strict=False)
    assert not keys.unexpected_keys
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in keys.missing_keys)
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
    x = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    weights = weights_of(model, "input_proj.")
    return F.conv2d(x, weights["weight"], weights["bias"]).detach()


def expected_positions(padding):
    """`(B, cells, 64)` for `padding` `(B, rows, columns)`, cell by cell from the formula."""
    positions = torch.zeros(*padding.shape, 64, dtype=torch.float64)
    for image, row, column in np.ndindex(*padding.shape):
        inside = ~padding[image]
        lengths = inside[:, column].sum().item(), inside[row].sum().item()
        counts = inside[: row + 1, column].sum().item(), inside[row, : column + 1].sum().item()
        for axis, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            for feature in range(32):
                angle = 2 * math.pi * count / (length + 1e-6) / 10000 ** (feature // 2 * 2 / 32)
                function = math.cos if feature % 2 else math.sin
                positions[image, row, column, 32 * axis + feature] = function(angle)
    return positions.flatten(1, 2)


def expected_memory(model, grid, padding):
    """Encoder output `(B, cells, hidden)` for `grid` `(B, hidden, rows, columns)`."""
    x = grid.flatten(2).transpose(1, 2)
    positions = expected_positions(padding)
    for index in range(SMALL_CATR.encoder_layers):
        layer = f"transformer.encoder.layers.{index}"
        normed = norm(model, layer + ".norm1", x)
        query = normed + positions
        x = x + attend(model, layer + ".self_attn", query, query, normed, key_padding_mask=padding.flatten(1))[0]
        x = x + feedforward(model, layer, norm(model, layer + ".norm2", x))
    return norm(model, "transformer.encoder.norm", x)


def expected_logits(model, memory, tokens, token_padding):
    """Logits `(B, n, vocabulary)` and the weights of each decoder layer over the cells, without padded cells."""
    n = tokens.shape[1]
    cells = memory.flatten(1, 2)
    positions = expected_positions(torch.zeros(memory.shape[:3], dtype=torch.bool))
    words = weights_of(model, "transformer.embeddings.")
    token_positions = words["position_embeddings.weight"][:n]
    x = words["word_embeddings.weight"][tokens] + token_positions
    x = norm(model, "transformer.embeddings.LayerNorm", x, eps=1e-12)
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    cross_attention = []
    for index in range(SMALL_CATR.decoder_layers):
        layer = f"transformer.decoder.layers.{index}"
        normed = norm(model, layer + ".norm1", x)
        query = normed + token_positions
        masks = {"attn_mask": future, "key_padding_mask": token_padding}
        x = x + attend(model, layer + ".self_attn", query, query, normed, **masks)[0]
        query = norm(model, layer + ".norm2", x) + token_positions
        mixed, weights = attend(model, layer + ".multihead_attn", query, cells + positions, cells)
        x = x + mixed
        cross_attention.append(weights)
        x = x + feedforward(model, layer, norm(model, layer + ".norm3", x))
    x = norm(model, "transformer.decoder.norm", x)
    for index in range(2):
        x = F.relu(linear(model, f"mlp.layers.{index}", x))
    return linear(model, "mlp.layers.2", x), cross_attention


def random_texts(rows, n, seed=3):
    """Random tokens after a start token."""
    tokens = torch.randint(1, SMALL_CATR.vocabulary, (rows, n), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = SMALL_CATR.start
    return tokens


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


def test_a_cell_covers_16_pixels(model):
    for height, width in ((64, 64), (65, 33), (17, 80)):
        memory = model.memory(torch.zeros(1, 3, height, width, dtype=torch.float64))
        assert memory.shape == (1, math.ceil(height / 16), math.ceil(width / 16), 64)


def test_an_undilated_cell_covers_32_pixels():
    model = untrained_catr(replace(SMALL_CATR, dilation=False))
    assert model.memory(torch.zeros(1, 3, 65, 64)).shape == (1, 3, 2, 64)


def test_heads_must_divide_hidden():
    with pytest.raises(ValueError, match="hidden 64"):
        CatrConfig(hidden=64, heads=5)


def test_sine_positions_of_two_cells():
    """One row, two columns: the row is a full turn, the columns half a turn and a full one; wavelengths 1 and 100."""
    full_turn = [0, 1, math.sin(math.tau / 100), math.cos(math.tau / 100)]
    half_turn = [0, -1, math.sin(math.pi / 100), math.cos(math.pi / 100)]
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    positions = sine_positions(valid, 8, torch.float64)
    expected = torch.tensor([[[full_turn + half_turn, full_turn + full_turn]]], dtype=torch.float64)
    # The epsilon of 1e-6 in the published code shifts a full turn by up to 2 pi * 1e-6.
    torch.testing.assert_close(positions, expected, atol=7e-6, rtol=0)
    assert sine_positions(valid, 4).dtype == torch.float32


def test_memory_equals_the_published_encoder(model, images, memory):
    grid = expected_grid(model, images)
    assert memory.shape == (3, 5, 4, 64)
    assert_close(model.features(images).permute(0, 3, 1, 2), grid)
    no_padding = torch.zeros(3, 5, 4, dtype=torch.bool)
    assert_close(memory.flatten(1, 2), expected_memory(model, grid, no_padding))


def test_logits_equal_the_published_decoder(model, memory):
    tokens = random_texts(3, 9)
    expected, _ = expected_logits(model, memory, tokens, torch.zeros(3, 9, dtype=torch.bool))
    assert expected.std() > 0.5  # else almost any two outputs would be close
    assert_close(model.logits(tokens, memory), expected[:, -1])
    assert_close(model.logits(tokens[:, :1], memory), expected[:, 0])


def test_float32_agrees_with_float64(model, images):
    single = untrained_catr()
    tokens = random_texts(3, 8)
    expected = model.logits(tokens, model.memory(images))
    logits = single.logits(tokens, single.memory(images.float()))
    assert logits.dtype == torch.float32
    assert_close(logits, expected.float())


def test_padding_does_not_change_the_transformer(model):
    """Features of 3x2 and 5x4 cells; the padding of the first holds numbers that must not matter."""
    features = torch.randn(2, 5, 4, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mask = torch.ones(2, 80, 64, dtype=torch.bool)
    mask[0, :48, :32] = False
    mask[1] = False
    first_alone = features[:1, :3, :2]
    tokens = random_texts(2, 6)
    encoded = model.encode(features, mask)
    assert_close(encoded[:1, :3, :2], model.encode(first_alone))
    assert_close(encoded[1:], model.encode(features[1:]))
    logits = model.logits(tokens, encoded, mask)
    assert_close(logits[:1], model.logits(tokens[:1], model.encode(first_alone)))
    weights = model.cross_attention(tokens, encoded, mask=mask).unflatten(-1, (5, 4))
    assert weights[0, :, :, 3:].abs().max() == 0
    assert weights[0, ..., 2:].abs().max() == 0
    weights_alone = model.cross_attention(tokens[:1], model.encode(first_alone))
    assert_close(weights[:1, :, :, :3, :2].flatten(3), weights_alone)


def test_a_padded_batch_equals_the_published_one(model):
    """From the pixels on, with sides that are not multiples of a cell; near the image alone: see `memory`."""
    pixels = torch.randn(2, 3, 75, 64, dtype=torch.float64)
    mask = torch.zeros(2, 75, 64, dtype=torch.bool)
    mask[0, 41:] = True
    mask[0, :, 30:] = True
    pixels[0].masked_fill_(mask[0], 0)
    grid = expected_grid(model, pixels)
    padding = F.interpolate(mask[None].float(), size=grid.shape[-2:])[0].bool()
    memory = model.memory(pixels, mask)
    assert_close(memory.flatten(1, 2), expected_memory(model, grid, padding))
    alone = model.memory(pixels[:1, :, :41, :30])
    assert (memory[0, :3, :2] - alone[0]).abs().max() > 1e-3


def published_greedy(model, memory):
    """Texts as predict.py decodes them: 128 positions in every step, those after the current one masked."""
    tokens = torch.full((len(memory), 128), SMALL_CATR.pad)
    padding = torch.ones(len(memory), 128, dtype=torch.bool)
    tokens[:, 0] = SMALL_CATR.start
    padding[:, 0] = False
    for position in range(127):
        logits, _ = expected_logits(model, memory, tokens, padding)
        tokens[:, position + 1] = logits[:, position].argmax(-1)
        padding[:, position + 1] = False
    return [cut_at_end(row) for row in tokens.tolist()]


def cached_greedy(model, memory):
    rows = torch.arange(len(memory))
    tokens = torch.full((len(memory), 1), model.start)
    cache = model.new_cache(memory)
    while tokens.shape[1] < 128:
        next_tokens = model.read(tokens[:, -1:], cache, rows).argmax(-1)
        tokens = torch.cat((tokens, next_tokens[:, None]), 1)
    return [cut_at_end(row) for row in tokens.tolist()]


def cut_at_end(row):
    return row[: row.index(SMALL_CATR.end)] if SMALL_CATR.end in row else row


def test_greedy_texts_are_the_published_ones(model, memory):
    texts = cached_greedy(model, memory)
    assert texts == published_greedy(model, memory)
    assert len({tuple(text) for text in texts}) > 1
    assert max(len(set(text)) for text in texts) > 5  # not a single word repeated


def test_reading_step_by_step_equals_reading_whole_texts(model, memory):
    """Two, no and three rows per image; later, rows are dropped and repeated; one or several tokens per step."""
    image_of_row = torch.tensor([0, 0, 2, 2, 2])
    tokens = random_texts(5, 14)
    cache = model.new_cache(memory)
    assert cache.rows is None
    length = 0
    steps = ((1, None), (2, None), (5, [0, 2, 4]), (6, [0, 0, 1, 2, 2]), (7, [4]), (9, None), (14, None))
    for end, selected in steps:
        if selected is not None:
            cache.select(torch.tensor(selected))
            image_of_row = image_of_row[selected]
            tokens = torch.cat((tokens[selected, :length], random_texts(len(selected), 14, seed=end)[:, length:]), 1)
        logits = model.read(tokens[:, length:end], cache, image_of_row)
        length = end
        assert (cache.rows, cache.length, cache.images) == (len(tokens), end, 3)
        assert_close(logits, model.logits(tokens[:, :end], memory[image_of_row]))


def test_logits_of_all_tokens_equal_reading_step_by_step(model, memory):
    """Two, no and one row per image; the padding after a text does not change its logits."""
    image_of_row = torch.tensor([0, 0, 2])
    tokens = random_texts(3, 9)
    logits = model.text_logits(tokens, memory, image_of_row)
    assert logits.shape == (3, 9, SMALL_CATR.vocabulary)
    cache = model.new_cache(memory)
    for position in range(9):
        step = model.read(tokens[:, position : position + 1], cache, image_of_row)
        assert_close(logits[:, position], step)
    assert_close(logits[:, -1], model.logits(tokens, memory[image_of_row]))
    padded = torch.cat((tokens, torch.full((3, 4), SMALL_CATR.pad)), 1)
    assert_close(model.text_logits(padded, memory, image_of_row)[:, :9], logits)


def test_the_keys_of_an_image_are_never_copied(model, memory):
    """Whatever is selected, the cache holds the same tensors of three images."""
    cache = model.new_cache(memory)
    before = [(layer.image_keys, layer.image_values) for layer in cache.layers]
    model.read(random_texts(3, 1), cache, torch.arange(3))
    cache.select(torch.arange(3).repeat_interleave(7))
    model.read(random_texts(21, 1), cache, torch.arange(3).repeat_interleave(7))
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert layer.image_keys is keys
        assert layer.image_values is values
        assert keys.shape == values.shape == (3, 2, 20, 32)


def test_invalid_input_is_rejected(model, memory):
    cache = model.new_cache(memory)
    with pytest.raises(ValueError, match="sorted by image"):
        model.read(random_texts(3, 1), cache, torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match="3 rows of tokens, 2 images"):
        model.read(random_texts(3, 1), cache, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="129 tokens.*128"):
        model.logits(random_texts(3, 129), memory)
    model.read(random_texts(3, 128), cache, torch.arange(3))
    with pytest.raises(ValueError, match="129 tokens.*128"):
        model.read(random_texts(3, 1), cache, torch.arange(3))
    with pytest.raises(ValueError, match="2 rows of tokens, 2 images, 3 rows in the cache"):
        model.read(random_texts(2, 1), cache, torch.arange(2))
    with pytest.raises(IndexError):
        model.cross_attention(random_texts(3, 4), memory, layer=3)


def test_cross_attention_equals_the_weights_behind_the_logits(model, memory):
    """The expected weights are those of the modules whose output makes the logits."""
    tokens = random_texts(3, 7)
    _, expected = expected_logits(model, memory, tokens, torch.zeros(3, 7, dtype=torch.bool))
    for layer in (0, 1, 2, -1):
        weights = model.cross_attention(tokens, memory, layer)
        assert weights.shape == (3, 2, 7, 20)
        assert_close(weights.sum(-1), torch.ones(3, 2, 7, dtype=torch.float64))
        assert_close(weights, expected[layer])
    assert torch.equal(model.cross_attention(tokens, memory), weights)  # the last layer by default
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("wrapped", [True, False])
def test_load_derives_sizes_and_loads_every_weight(tmp_path, wrapped):
    config = replace(SMALL_CATR, blocks=(1, 2, 1, 1), positions=20, encoder_layers=1)
    state_dict = untrained_catr(config).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({"model": state_dict, "epoch": 3, "optimizer": {"lr": 1.0}} if wrapped else state_dict, path)
    loaded = catr.load(path)
    assert loaded.config == config
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert loaded.state_dict().keys() == state_dict.keys()
    assert all(torch.equal(weight, state_dict[name]) for name, weight in loaded.state_dict().items())


SHIPPED_KIND = replace(
    SMALL_CATR, heads=4, blocks=(1, 2, 1, 1), expansion=1, dilation=False, longer_side=48, start=2, end=3
)


def test_a_saved_model_loads_with_the_config_of_its_metadata(tmp_path, images):
    """Shapes tell neither the number of heads nor dilation, longer side and special tokens."""
    saved = untrained_catr(SHIPPED_KIND)
    catr.save(tmp_path, saved, blip.word_tokenizer({"red", "star"}))
    loaded = catr.load(tmp_path / catr.WEIGHTS)
    assert loaded.config == SHIPPED_KIND
    assert (loaded.start, loaded.end, loaded.pad) == (2, 3, 0)
    assert not loaded.training
    for name, weight in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert torch.equal(loaded.memory(images.float()), saved.memory(images.float()))
    tokenizer = catr.load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("A red star.").input_ids) == "[CLS] [UNK] red star [SEP]"
    assert tokenizer.sep_token_id == loaded.end


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('"heads": 4', "heads"),
        ("{}", "lacks|wrong shapes"),  # the published sizes
        ('"expansion": 1', "expansion"),
        ('"longer_side": 48', "longer_side"),
        ('"vocabulary": 110', "vocabulary"),
    ],
)
def test_a_wrong_config_in_the_metadata_is_named(tmp_path, wrong, message):
    path = tmp_path / catr.WEIGHTS
    catr.save(tmp_path, untrained_catr(SHIPPED_KIND), blip.word_tokenizer({"red"}))
    with safe_open(path, framework="pt") as file:
        config = file.metadata()["config"]
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert wrong in config or wrong == "{}"
    config = "{}" if wrong == "{}" else config.replace(wrong, wrong.split(":")[0] + ": -1")
    save_file(weights, path, metadata={"config": config})
    with pytest.raises(ValueError, match=message) as error:
        catr.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_special_tokens_must_be_in_the_vocabulary():
    with pytest.raises(ValueError, match="vocabulary of 50"):
        replace(SMALL_CATR, vocabulary=50)


def test_the_narrow_resnet_has_a_quarter_of_the_channels():
    """Its blocks are torchvision's; only the first convolution has the published 64 channels."""
    published = Catr(SMALL_CATR).state_dict()
    narrow = Catr(replace(SMALL_CATR, expansion=1)).state_dict()
    body = "backbone.0.body."
    assert narrow[f"{body}conv1.weight"].shape == published[f"{body}conv1.weight"].shape == (64, 3, 7, 7)
    for stage in range(1, 5):
        for conv in (1, 2, 3):
            name = f"{body}layer{stage}.0.conv{conv}.weight"
            assert 4 * narrow[name].shape[0] == published[name].shape[0]
    assert narrow["input_proj.weight"].shape == (64, 512, 1, 1)
    assert published["input_proj.weight"].shape == (64, 2048, 1, 1)


def test_a_trained_batch_norm_is_exported_into_the_frozen_one(tmp_path, images):
    """In double precision, after two batches in training mode: the same output in eval mode."""
    torch.manual_seed(3)
    config = replace(SMALL_CATR, expansion=1)
    trained = Catr(config, partial(BatchNormAct2d, apply_act=False)).double().train()
    for weight in trained.backbone.parameters():
        if weight.dim() == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    for scale in (1, 3):
        trained.memory(scale * images)
    trained.eval()
    catr.save(tmp_path, trained, blip.word_tokenizer({"red"}))
    exported = catr.load(tmp_path / catr.WEIGHTS).double()  # the file is in double precision, `load` in single
    exported.load_state_dict(catr.read_weights(tmp_path / catr.WEIGHTS))
    assert_close(exported.memory(images), trained.memory(images))
    assert not any("num_batches" in name for name in exported.state_dict())
    assert (exported.state_dict()["backbone.0.body.bn1.running_mean"] != 0).all()


def load_error(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        catr.load(tmp_path / "weights.pth")
    assert "weights.pth" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_keys_that_do_not_match_are_named(tmp_path):
    state_dict = dict(untrained_catr().state_dict())
    del state_dict["transformer.encoder.norm.bias"]
    for number in range(7):
        state_dict[f"extra.{number}"] = torch.zeros(1)
    state_dict["mlp.layers.1.bias"] = torch.zeros(47)
    message = load_error(tmp_path, {"model": state_dict})
    assert "lacks transformer.encoder.norm.bias;" in message
    assert "has unknown keys extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more;" in message
    assert "extra.5" not in message
    assert "has wrong shapes: mlp.layers.1.bias is 47, expected 48" in message


def test_other_files_are_rejected(tmp_path):
    assert "and 710 more" in load_error(tmp_path, {"input_proj.bias": torch.zeros(256)})
    assert "holds a list" in load_error(tmp_path, [torch.zeros(1)])
    assert "values that are not tensors: epoch" in load_error(tmp_path, {"model": {"epoch": 3}})
    wrong_width = untrained_catr().state_dict() | {"input_proj.weight": torch.zeros(48, 2048, 1, 1)}
    assert "not a multiple of 32" in load_error(tmp_path, wrong_width)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="not a file of tensors"):
        catr.load(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError):
        catr.load(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (299, 224)),  # 224.25
        ((375, 500), (224, 299)),
        ((640, 427), (299, 199)),  # 199.48
        ((100, 60), (299, 179)),  # 179.4: small images are enlarged
        ((275, 275), (298, 298)),  # 275 * (299 / 275) is less than 299 in double precision
    ],
)
def test_preprocess_gives_the_published_size(size, expected):
    pixels = catr.preprocess(Image.new("RGB", size), 299)
    assert pixels.shape == (3, expected[1], expected[0])
    assert pixels.dtype == torch.float32
    assert (pixels == -1).all()


def test_preprocess_gives_the_published_values():
    """Gray images become three channels; 0..255 becomes -1..1; resizing is Pillow's default, bicubic."""
    gray = Image.fromarray(np.random.default_rng(5).integers(0, 256, (299, 150), dtype=np.uint8))
    expected = torch.from_numpy(np.array(gray)).float().div(127.5).sub(1).expand(3, -1, -1)
    assert_close(catr.preprocess(gray, 299), expected, roundings=4)  # a division, a subtraction, a division by 0.5
    colors = Image.fromarray(np.random.default_rng(6).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    expected = torch.from_numpy(np.array(colors.resize((299, 224)))).permute(2, 0, 1).float().div(127.5).sub(1)
    assert_close(catr.preprocess(colors, 299), expected, roundings=4)


def test_an_image_too_narrow_to_resize_is_rejected():
    with pytest.raises(ValueError, match="1000x3"):
        catr.preprocess(Image.new("RGB", (1000, 3)), 299)


def test_another_longer_side():
    assert catr.resized_shape(80, 80, 128) == (128, 128)
    assert catr.resized_shape(60, 80, 128) == (96, 128)
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    pixels = catr.resize(image, 128)
    assert (pixels.shape, pixels.dtype) == ((3, 96, 128), torch.uint8)
    assert torch.equal(catr.preprocess(image, 128), catr.normalize(pixels))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    weights = untrained_catr().state_dict()
    weights["mlp.layers.0.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="NaN or infinite weights: mlp.layers.0.bias"):
        catr.load(tmp_path / "w.pth")
