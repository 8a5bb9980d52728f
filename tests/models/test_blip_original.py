"""Conversion of original BLIP checkpoints: layout, forward passes in float64, tokenizer, files, and errors."""

import math
import os
import re

import pytest
import torch
from float_tolerance import assert_close
from safetensors.torch import load_file, save_file
from small_checkpoints import original_blip_shapes, share_text_weights
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.models import blip, blip_original

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
DECODER_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
OUTPUT_WEIGHT = "text_decoder.cls.predictions.decoder.weight"
TIED_NAMES = ("text_encoder.embeddings.word_embeddings.weight", DECODER_EMBEDDINGS, OUTPUT_WEIGHT)
IDS = blip_original.SpecialIds(pad=0, sep=3, dec=38)
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a cat dog ##s ##fish red don the on , . ' ? 2 e"

# ViT-B/16 at 224 pixels and configs/bert_config.json
BASE_SHAPES = original_blip_shapes(768, 12, 16, 14 * 14, 768, 12, 3072, 30524, 512, 256, 57600)
# Image tower with 3 heads of width 32, text models with 2
SMALL_SHAPES = original_blip_shapes(96, 2, 8, 3 * 3, 64, 2, 160, 40, 20, 16, 10)


@pytest.fixture
def original():
    """A small random checkpoint; its output weight differs from its word embeddings, unlike in the original's files."""
    weights = {name: torch.randn(shape) * 0.15 for name, shape in SMALL_SHAPES.items()}
    for name in weights:
        if re.search(r"(LayerNorm|norm\d?)\.weight$", name):
            weights[name] += 1
        if name.endswith(("position_ids", "queue_ptr")):
            weights[name] = torch.arange(weights[name].numel()).view(SMALL_SHAPES[name])
    return share_text_weights(weights)


@pytest.fixture
def original64(original):
    """The same checkpoint in float64, for the forward passes."""
    return {name: weight.double() if weight.is_floating_point() else weight for name, weight in original.items()}


def convert(weights, side=24):
    return blip_original.convert(weights, side, head_width=32, ids=IDS)


def convert64(weights):
    captioner, retriever = convert(weights)
    return captioner.double(), retriever.double()


# The original's forward passes, on its own names


def attend(query, key, value, heads, mask=0.0):
    """Scaled dot-product attention; `mask` is added to the scores."""
    query, key, value = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (query, key, value))
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def linear(weights, name, states):
    return F.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, states, eps):
    return F.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def image_tower(weights, pixels):
    stem = "visual_encoder.patch_embed.proj"
    patches = F.conv2d(pixels, weights[f"{stem}.weight"], weights[f"{stem}.bias"], stride=8).flatten(2).transpose(1, 2)
    states = torch.cat([weights["visual_encoder.cls_token"].expand(len(pixels), -1, -1), patches], 1)
    states = states + weights["visual_encoder.pos_embed"]
    for index in range(2):
        block = f"visual_encoder.blocks.{index}"
        qkv = linear(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", states, 1e-6)).chunk(3, -1)
        states = states + linear(weights, f"{block}.attn.proj", attend(*qkv, heads=3))
        inner = F.gelu(linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", states, 1e-6)))
        states = states + linear(weights, f"{block}.mlp.fc2", inner)
    return norm(weights, "visual_encoder.norm", states, 1e-6)


def text_model(weights, name, tokens, mask, image=None):
    """Text states; `mask` is added to self-attention's scores, and cross-attention needs image states."""
    states = F.embedding(tokens, weights[f"{name}.embeddings.word_embeddings.weight"])
    states = states + weights[f"{name}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    states = norm(weights, f"{name}.embeddings.LayerNorm", states, 1e-12)
    for index in range(2):
        layer = f"{name}.encoder.layer.{index}"
        for kind in ("attention", "crossattention")[: 1 if image is None else 2]:
            prefix = f"{layer}.{kind}"
            source = states if kind == "attention" else image
            query = linear(weights, f"{prefix}.self.query", states)
            key = linear(weights, f"{prefix}.self.key", source)
            value = linear(weights, f"{prefix}.self.value", source)
            context = attend(query, key, value, 2, mask if kind == "attention" else 0.0)
            output = linear(weights, f"{prefix}.output.dense", context)
            states = norm(weights, f"{prefix}.output.LayerNorm", output + states, 1e-12)
        inner = F.gelu(linear(weights, f"{layer}.intermediate.dense", states))
        output = linear(weights, f"{layer}.output.dense", inner)
        states = norm(weights, f"{layer}.output.LayerNorm", output + states, 1e-12)
    return states


def decoder_logits(weights, tokens, mask, image):
    """Logits; blip_decoder loads the output weight last, into the tensor that is the word embeddings too."""
    tied = weights | {DECODER_EMBEDDINGS: weights[OUTPUT_WEIGHT]}
    head = "text_decoder.cls.predictions"
    states = text_model(tied, "text_decoder.bert", tokens, mask, image)
    states = norm(tied, f"{head}.transform.LayerNorm", F.gelu(linear(tied, f"{head}.transform.dense", states)), 1e-12)
    return F.linear(states, tied[OUTPUT_WEIGHT], tied[f"{head}.bias"])


TOKENS = torch.tensor([[2, 7, 9, 21, 3], [2, 30, 3, 0, 0]])
ATTENTION_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
PADDING = (1.0 - ATTENTION_MASK)[:, None, None] * -10000  # (2, 1, 1, 5)
FUTURE = torch.full((5, 5), -10000.0).triu(1)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 24, dtype=torch.float64)


def test_image_tower_and_projection_equal_the_originals(original, original64, pixels):
    captioner, retriever = convert64(original)
    states = image_tower(original64, pixels)
    assert_close(captioner.vision_model(pixels).last_hidden_state, states)
    assert_close(retriever.vision_model(pixels).last_hidden_state, states)
    assert_close(retriever.vision_proj(states[:, 0]), linear(original64, "vision_proj", states[:, 0]))


def test_the_retriever_equals_the_original_with_and_without_an_image(original, original64, pixels):
    _, retriever = convert64(original)
    image = image_tower(original64, pixels)
    text = text_model(original64, "text_encoder", TOKENS, PADDING)
    assert_close(retriever.text_encoder(TOKENS, attention_mask=ATTENTION_MASK).last_hidden_state, text)
    assert_close(retriever.text_proj(text[:, 0]), linear(original64, "text_proj", text[:, 0]))
    both = text_model(original64, "text_encoder", TOKENS, PADDING, image)
    itm_logits = retriever(TOKENS, pixels, attention_mask=ATTENTION_MASK).itm_score
    assert_close(itm_logits, linear(original64, "itm_head", both[:, 0]))
    image_vectors = F.normalize(linear(original64, "vision_proj", image[:, 0]))
    text_vectors = F.normalize(linear(original64, "text_proj", text[:, 0]))
    similarity = retriever(TOKENS, pixels, attention_mask=ATTENTION_MASK, use_itm_head=False).itm_score
    assert_close(similarity, image_vectors @ text_vectors.T)


def test_the_decoder_equals_the_original(original, original64, pixels):
    captioner, _ = convert64(original)
    logits = captioner(pixels, TOKENS, attention_mask=ATTENTION_MASK).logits
    assert_close(logits, decoder_logits(original64, TOKENS, PADDING + FUTURE, image_tower(original64, pixels)))
    assert torch.equal(captioner.generate(pixels, max_new_tokens=2)[:, 0], torch.tensor([IDS.dec, IDS.dec]))


def test_every_tensor_is_unchanged_under_its_new_name(original):
    captioner, retriever = convert(original)
    new_names = {
        "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
        "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
        "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
        "visual_encoder.norm.": "vision_model.post_layernorm.",
        "visual_encoder.blocks.": "vision_model.encoder.layers.",
        ".norm": ".layer_norm",
        ".attn.": ".self_attn.",
        "attn.proj.": "attn.projection.",
    }
    renamed = {}
    for name, weight in original.items():
        if re.search(r"_m\.|queue|^temp$|position_ids", name):
            continue
        for old, new in new_names.items():
            name = name.replace(old, new) if name.startswith(("visual", "vision_model")) else name
        renamed[name] = weight
    renamed[DECODER_EMBEDDINGS] = original[OUTPUT_WEIGHT]
    states = captioner.state_dict() | retriever.state_dict()
    assert renamed.keys() == states.keys()
    assert all(torch.equal(weight, states[name]) for name, weight in renamed.items())
    assert captioner.get_input_embeddings().weight is captioner.text_decoder.get_output_embeddings().weight
    assert not torch.equal(retriever.text_encoder.embeddings.word_embeddings.weight, states[OUTPUT_WEIGHT])
    for model in (captioner, retriever):
        assert not model.training
        assert not any(weight.requires_grad or weight.is_meta for weight in model.parameters())
        assert not any(buffer.is_meta for buffer in model.buffers())


def test_half_precision_becomes_single(original):
    for model in convert({name: weight.half() for name, weight in original.items()}):
        assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
        assert torch.equal(model.vision_model.embeddings.class_embedding, original["visual_encoder.cls_token"].half())


# The published size


@pytest.fixture(scope="module")
def base():
    """The converted models on the meta device: names and shapes, but no values."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in BASE_SHAPES.items()}
    return blip_original.convert(share_text_weights(weights), 384)


def test_every_key_of_the_published_size_is_used_or_dropped_on_purpose(base):
    used = {blip_original._original_name(name) for model in base for name in model.state_dict()}
    unused = BASE_SHAPES.keys() - used
    assert used < BASE_SHAPES.keys()
    assert len(BASE_SHAPES) == 2 * (4 + 12 * 12 + 2) + 3 * (5 + 12 * 26) + 8 + 2 + 7 + 4  # towers, BERTs, smaller parts
    momentum = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
    assert {name for name in unused if not name.startswith(momentum)} == {
        "image_queue",
        "text_queue",
        "queue_ptr",
        "temp",
    } | {f"{part}.embeddings.position_ids" for part in ("text_encoder", "text_decoder.bert")}


def test_parameter_counts_are_the_published_ones(base):
    """By hand, with d = 768: a ViT block has 12 d^2 + 13 d, a BERT layer with cross-attention 16 d^2 + 19 d.

    model_base_caption_capfilt_large.pth, the captioner only, has 854 MiB at four bytes per parameter
    (github.com/AUTOMATIC1111/stable-diffusion-webui, pull request 3152). The 247.4 M parameters that
    blip-image-captioning-base is listed with count the output weight in addition to the word embeddings.
    """
    d, words = 768, 30524
    image = d + 577 * d + (d * 3 * 16 * 16 + d) + 12 * (12 * d * d + 13 * d) + 2 * d
    text = (words + 512) * d + 2 * d + 12 * (16 * d * d + 19 * d)
    head = d * d + 3 * d + words
    captioner, retriever = base
    assert sum(weight.numel() for weight in captioner.parameters()) == image + text + head == 223_971_644
    assert (image + text + head) * 4 // 2**20 == 854
    assert image + text + head + words * d == 247_414_076
    state_dict = captioner.state_dict()
    assert sum(weight.numel() for weight in state_dict.values()) == 247_414_076 + words  # the output bias twice too
    matching = 2 * (d * 256 + 256) + 2 * d + 2
    assert sum(weight.numel() for weight in retriever.parameters()) == image + text + matching == 223_744_258


def test_the_config_is_the_published_one(base):
    text = base[0].config.text_config
    image = base[0].config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size) == (
        768,
        12,
        12,
        3072,
    )
    assert (text.vocab_size, text.max_position_embeddings, text.encoder_hidden_size) == (30524, 512, 768)
    assert (text.bos_token_id, text.sep_token_id, text.eos_token_id, text.pad_token_id) == (30522, 102, 102, 0)
    assert (text.layer_norm_eps, text.hidden_act, text.is_decoder) == (1e-12, "gelu", True)
    assert (image.hidden_size, image.num_hidden_layers, image.num_attention_heads, image.intermediate_size) == (
        768,
        12,
        12,
        3072,
    )
    assert (image.image_size, image.patch_size, image.layer_norm_eps, image.hidden_act) == (384, 16, 1e-6, "gelu")
    assert base[0].config.image_text_hidden_size == 256
    assert base[1].vision_model.embeddings.position_embedding.shape == (1, 577, 768)


# Positions


def test_positions_of_the_same_grid_are_not_copied(original):
    positions = original["visual_encoder.pos_embed"]
    assert blip_original.resample(positions, 3) is positions
    assert convert(original)[0].vision_model.embeddings.position_embedding.data_ptr() == positions.data_ptr()


def test_positions_are_resampled_bicubically_without_antialiasing():
    grid = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    positions = torch.cat([torch.tensor([7.0]), grid.flatten()]).view(1, 17, 1)
    shrunk = blip_original.resample(positions, 2)
    # A new center lies between two old ones: Keys' kernel with a = -0.75 gives -3/32, 19/32, 19/32, -3/32.
    near = 19 / 32
    far = -3 / 32
    expected = [7, near * near, near * far, far * near, far * far]
    assert shrunk.flatten().tolist() == pytest.approx(expected, abs=1e-6)  # float32: sums of 16 products below 1
    antialiased = F.interpolate(grid[None, None], size=(2, 2), mode="bicubic", antialias=True)
    assert not torch.allclose(shrunk[0, 1:, 0], antialiased.flatten(), atol=0.01)


def test_positions_for_another_side_are_interpolated_by_torch(original):
    positions = original["visual_encoder.pos_embed"]
    grown = convert(original, side=40)[1].vision_model.embeddings.position_embedding
    patches = positions[0, 1:].T.reshape(1, 96, 3, 3)
    expected = F.interpolate(patches, size=(5, 5), mode="bicubic", align_corners=False)[0].reshape(96, 25).T
    assert torch.equal(grown[0, 0], positions[0, 0])
    # Float32, and torch has another kernel for another memory layout: sums of 16 products.
    assert_close(grown[0, 1:], expected, roundings=16)
    embeddings = convert(original)[1].vision_model.embeddings
    assert_close(embeddings.interpolate_pos_encoding(torch.empty(1, 26, 96), 40, 40), grown, roundings=16)


# Errors


def conversion_error(weights, **settings):
    with pytest.raises(ValueError) as error:
        convert(weights, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_and_unknown_keys_are_named(original):
    del original["itm_head.bias"]
    assert conversion_error(original) == "lacks itm_head.bias"
    original["text_encoder.pooler.dense.weight"] = torch.zeros(64, 64)
    assert conversion_error(original) == "lacks itm_head.bias; has unknown keys text_encoder.pooler.dense.weight"
    block = [name for name in original if name.startswith("visual_encoder.blocks.1.")]
    for name in block:
        original[name.replace(".1.", ".2.")] = original.pop(name)
    assert conversion_error(original).count("visual_encoder.blocks.1.") == 5
    assert "and 8 more; has unknown" in conversion_error(original)  # 12 of the block, one bias


def test_five_unknown_keys_are_named_and_the_rest_is_counted(original):
    original |= {name: torch.zeros(1) for name in ("temperature", *(f"head.{number}" for number in range(12)))}
    assert conversion_error(original) == "has unknown keys temperature, head.0, head.1, head.2, head.3 and 8 more"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vision_proj.bias", (15,), "has wrong shapes: vision_proj.bias is 15, expected 16"),
        ("text_proj.weight", (), "has wrong shapes: text_proj.weight is a single number, expected 16x64"),
        (
            "text_encoder.encoder.layer.1.crossattention.self.key.weight",
            (64, 64),
            "has wrong shapes: text_encoder.encoder.layer.1.crossattention.self.key.weight is 64x64, expected 64x96",
        ),
        (
            "visual_encoder.pos_embed",
            (1, 10, 95),
            "has wrong shapes: visual_encoder.pos_embed is 1x10x95, expected 1x10x96",
        ),
        ("visual_encoder.pos_embed", (1, 9, 96), "visual_encoder.pos_embed is 1x9x96, expected 1 + n * n positions"),
        ("visual_encoder.pos_embed", (1, 1, 96), "visual_encoder.pos_embed is 1x1x96, expected 1 + n * n positions"),
        (
            "visual_encoder.patch_embed.proj.weight",
            (96, 192),
            "visual_encoder.patch_embed.proj.weight is 96x192, expected 4 axes",
        ),
    ],
)
def test_wrong_shapes_are_reported_with_the_expected_ones(original, name, shape, message):
    original[name] = torch.zeros(shape)
    assert conversion_error(original) == message


def test_weights_that_sizes_come_from_are_required(original):
    del original["visual_encoder.patch_embed.proj.weight"]
    assert conversion_error(original) == "lacks visual_encoder.patch_embed.proj.weight"


def test_fine_tuned_checkpoints_are_rejected_by_their_parts(original):
    caption = {
        name: weight for name, weight in original.items() if name.startswith(("visual_encoder.", "text_decoder."))
    }
    message = "holds no {}; expected a pretraining checkpoint of BLIP, which has all parts"
    assert conversion_error(caption) == message.format("text_encoder, vision_proj, text_proj, itm_head")
    retrieval = {name: weight for name, weight in original.items() if not name.startswith("text_decoder.")}
    retrieval |= {"idx_queue": torch.zeros(1, 10), "ptr_queue": torch.zeros(1)}
    assert conversion_error(retrieval) == message.format("text_decoder")
    assert conversion_error({}).startswith("holds no visual_encoder, text_encoder")


@pytest.mark.parametrize(
    "name",
    [
        DECODER_EMBEDDINGS,
        "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight",
        "text_encoder.encoder.layer.0.output.LayerNorm.bias",
        "text_decoder.cls.predictions.bias",
    ],
)
def test_two_different_tensors_for_one_shared_weight_are_rejected(original, name):
    original[name] = original[name] + 1
    message = conversion_error(original)
    assert message.startswith("differ, though BLIP shares them: text_")
    assert message.count(" and ") == 1
    assert name in message


def test_one_name_of_a_shared_weight_is_enough(original):
    expected = [model.state_dict() for model in convert(original)]
    for number, name in enumerate([name for name in original if name.startswith("text_decoder.bert.")]):
        if ".attention." not in name and "position_ids" not in name:
            del original[name if number % 2 else name.replace("text_decoder.bert", "text_encoder")]
    del original["text_decoder.cls.predictions.decoder.bias"]
    for state_dict, model in zip(expected, convert(original), strict=True):
        assert all(torch.equal(weight, state_dict[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("present", [(name,) for name in TIED_NAMES] + [TIED_NAMES])
def test_word_embeddings_and_output_weight_are_one_tensor_whichever_names_a_file_has(original, present):
    words = original[DECODER_EMBEDDINGS]
    for name in TIED_NAMES:
        del original[name]
    captioner, retriever = convert(original | dict.fromkeys(present, words))
    assert captioner.get_input_embeddings().weight is captioner.text_decoder.get_output_embeddings().weight
    assert torch.equal(captioner.get_input_embeddings().weight, words)
    assert torch.equal(retriever.text_encoder.embeddings.word_embeddings.weight, words)


def test_impossible_sides_heads_and_ids_are_rejected(original):
    assert (
        conversion_error(original, side=20) == "a side of 20 pixels is not a multiple of the checkpoint's patch size, 8"
    )
    assert "a side of 0 pixels" in conversion_error(original, side=0)
    with pytest.raises(ValueError, match="widths of 96 and 64 are not multiples of the head width, 64"):
        blip_original.convert(original, 24, ids=IDS)
    with pytest.raises(ValueError, match=r"SpecialIds\(pad=0, sep=102, dec=30522\) do not fit a vocabulary of 40"):
        blip_original.convert(original, 24, head_width=32)


# Tokenizer


@pytest.fixture
def vocabulary(tmp_path):
    """20 words, then 18 unused tokens: 40 with BLIP's two."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*VOCABULARY.split(), *(f"[unused{number}]" for number in range(18))]) + "\n")
    return path


def test_word_pieces_are_berts_and_blips_tokens_follow_them(vocabulary, tmp_path):
    built = blip_original.tokenizer(vocabulary)
    built.save_pretrained(tmp_path / "saved")
    loaded = blip.load_tokenizer(str(tmp_path / "saved"))
    bert = BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=True)
    texts = (
        "a cat",
        "A Cats,\tdon't  catfish?",
        "the DÖG on réd 2e",
        "cat" + "s" * 97,
        "cat" + "s" * 98,
        "猫cat",
        "a [SEP] dog",
        "",
    )
    for tokenizer in (built, loaded):
        assert len(tokenizer) == 40
        assert (tokenizer.bos_token, tokenizer.model_max_length) == ("[DEC]", 512)
        assert tokenizer.convert_tokens_to_ids(["[PAD]", "[SEP]", "[DEC]", "[ENC]", "##fish"]) == [0, 3, 38, 39, 9]
        assert tokenizer("a cat").input_ids == [2, 5, 6, 3]
        assert [tokenizer(text).input_ids for text in texts] == [bert(text).input_ids for text in texts]
        assert (
            tokenizer.decode(tokenizer("a cats, red catfish.").input_ids, skip_special_tokens=True)
            == "a cats, red catfish."
        )
        assert tokenizer.decode(tokenizer("a [DEC] dog [ENC]").input_ids, skip_special_tokens=True) == "a dog"
        assert tokenizer(["a", "a cat"], padding=True).input_ids == [[2, 5, 3, 0], [2, 5, 6, 3]]


def test_blips_tokens_have_the_published_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\x85", *map(str, range(30517))]))
    tokenizer = blip_original.tokenizer(path)
    assert tokenizer.convert_tokens_to_ids(["30516", "[DEC]", "[ENC]"]) == [30521, 30522, 30523]
    assert len(tokenizer) == 30524


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[PAD] [CLS] a", r"lacks \[UNK\], \[SEP\]; expected bert-base-uncased's"),
        ("[PAD] [UNK] [CLS] [SEP] a a", "has a word twice"),
        ("[PAD] [UNK] [CLS] [SEP] [ENC]", r"or \[DEC\] or \[ENC\]"),
    ],
)
def test_other_vocabularies_are_rejected(tmp_path, words, message):
    path = tmp_path / "vocab.txt"
    path.write_text(words.replace(" ", "\n"))
    with pytest.raises(ValueError, match=message):
        blip_original.tokenizer(path)


# Files


@pytest.mark.parametrize("kind", ["pth", "bare.pth", "old.pth", "safetensors"])
def test_a_converted_folder_loads(original, vocabulary, tmp_path, kind):
    source = tmp_path / f"model.{kind}"
    folder = tmp_path / "blip"
    if kind == "safetensors":
        save_file({name: weight.clone() for name, weight in original.items()}, source)
    else:
        content = original if kind == "bare.pth" else {"model": original, "epoch": 19}
        torch.save(content, source, _use_new_zipfile_serialization=kind != "old.pth")
    blip_original.convert_file(source, vocabulary, folder, side=40, head_width=32)
    captioner, retriever = convert(original, side=40)
    for model in (captioner, retriever):
        loaded = blip.load(type(model), str(folder))
        assert isinstance(loaded, (BlipForConditionalGeneration, BlipForImageTextRetrieval))
        states = loaded.state_dict()
        assert states.keys() == model.state_dict().keys()
        assert all(torch.equal(weight, states[name]) for name, weight in model.state_dict().items())
        assert loaded.config.text_config.bos_token_id == 38
        assert loaded.config.vision_config.layer_norm_eps == 1e-6
    keys = captioner.state_dict().keys() | retriever.state_dict().keys()
    assert load_file(folder / "model.safetensors").keys() == keys
    decoder = blip.load_decoder(str(folder)).double()
    image = torch.randn(2, 7, 96, dtype=torch.float64)
    logits = captioner.text_decoder.double()(TOKENS, encoder_hidden_states=image).logits
    assert_close(decoder(TOKENS, encoder_hidden_states=image).logits, logits)
    assert blip.load_preprocessing(str(folder)) == blip.Preprocessing(40, MEAN, STD)
    tokenizer = blip.load_tokenizer(str(folder))
    assert (tokenizer.bos_token, tokenizer("a cat").input_ids) == ("[DEC]", [2, 5, 6, 3])


def test_converting_twice_gives_the_same_bytes(original, vocabulary, tmp_path):
    torch.save({"model": original}, tmp_path / "model.pth")
    contents = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, folder, 24, 32)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert {"config.json", "model.safetensors", "tokenizer.json"} < contents[0].keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"epoch": 3}}, r"model.pth contains values that are not tensors: epoch"),
        ([torch.zeros(1)], r"model.pth holds a list; expected tensors by name"),
        ({"model": {"temp": torch.zeros(())}}, r"model.pth: holds no visual_encoder"),
        ({"model": {"a": os.getcwd}}, r"model.pth is not a file of tensors"),
    ],
)
def test_other_files_are_rejected(vocabulary, tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message) as error:
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, tmp_path / "blip")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "blip").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_damaged_and_missing_files_are_errors(vocabulary, tmp_path, name):
    with pytest.raises(FileNotFoundError):
        blip_original.convert_file(tmp_path / name, vocabulary, tmp_path / "blip")
    for damaged in (b"", b"no tensors"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is not a file of tensors"):
            blip_original.convert_file(tmp_path / name, vocabulary, tmp_path / "blip")


def test_a_vocabulary_of_another_size_is_rejected(original, vocabulary, tmp_path):
    torch.save(original, tmp_path / "model.pth")
    vocabulary.write_text(vocabulary.read_text().removesuffix("[unused17]\n"))
    with pytest.raises(ValueError, match=r"vocab.txt makes 39 tokens with BLIP's two, .*model.pth embeds 40"):
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, tmp_path / "blip", 24, 32)
