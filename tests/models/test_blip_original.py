"""The original BLIP's checkpoint layout, written down here once more, and what is made of it."""

import math
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.models import blip, blip_original

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
OUT = "text_decoder.cls.predictions.decoder.weight"
IDS = blip_original.SpecialIds(pad=0, sep=3, dec=38)
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a cat dog ##s ##fish red don the on , . ' ? 2 e"


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tower(name, dim, depth, patch, count):
    """ViT as in models/vit.py: qkv with bias, four times as wide inside."""
    shapes = {f"{name}.cls_token": (1, 1, dim), f"{name}.pos_embed": (1, count + 1, dim)}
    shapes |= {f"{name}.patch_embed.proj.weight": (dim, 3, patch, patch), f"{name}.patch_embed.proj.bias": (dim,)}
    for number in range(depth):
        block = f"{name}.blocks.{number}"
        shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
        shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
    return shapes | norm(f"{name}.norm", dim)


def bert(name, width, layers, inner, vocabulary, positions, dim):
    """BertModel as in models/med.py: no token types, no pooler, cross-attention to an image tower of `dim`."""
    shapes = {
        f"{name}.embeddings.position_ids": (1, positions),
        f"{name}.embeddings.word_embeddings.weight": (vocabulary, width),
        f"{name}.embeddings.position_embeddings.weight": (positions, width),
    } | norm(f"{name}.embeddings.LayerNorm", width)
    for number in range(layers):
        layer = f"{name}.encoder.layer.{number}"
        for kind, source in (("attention", width), ("crossattention", dim)):
            shapes |= linear(f"{layer}.{kind}.self.query", width, width)
            shapes |= linear(f"{layer}.{kind}.self.key", width, source)
            shapes |= linear(f"{layer}.{kind}.self.value", width, source)
            shapes |= linear(f"{layer}.{kind}.output.dense", width, width)
            shapes |= norm(f"{layer}.{kind}.output.LayerNorm", width)
        shapes |= linear(f"{layer}.intermediate.dense", inner, width)
        shapes |= linear(f"{layer}.output.dense", width, inner) | norm(f"{layer}.output.LayerNorm", width)
    return shapes


def layout(dim, depth, patch, count, width, layers, inner, vocabulary, positions, projection, queue):
    """Names and shapes of BLIP_Pretrain's state dict (models/blip_pretrain.py)."""
    text = (width, layers, inner, vocabulary, positions, dim)
    head = "text_decoder.cls.predictions"
    shapes = {"image_queue": (projection, queue), "text_queue": (projection, queue), "queue_ptr": (1,), "temp": ()}
    for copy in ("", "_m"):
        shapes |= tower(f"visual_encoder{copy}", dim, depth, patch, count) | bert(f"text_encoder{copy}", *text)
        shapes |= linear(f"vision_proj{copy}", projection, dim) | linear(f"text_proj{copy}", projection, width)
    shapes |= linear("itm_head", 2, width) | bert("text_decoder.bert", *text)
    shapes |= linear(f"{head}.transform.dense", width, width) | norm(f"{head}.transform.LayerNorm", width)
    return shapes | {f"{head}.bias": (vocabulary,)} | linear(f"{head}.decoder", vocabulary, width)


BASE = layout(768, 12, 16, 14 * 14, 768, 12, 3072, 30524, 512, 256, 57600)  # configs/bert_config.json, ViT-B/16 at 224
SMALL = layout(96, 2, 8, 3 * 3, 64, 2, 160, 40, 20, 16, 10)  # 3 heads of 32 see, 2 heads of 32 read


def share(weights):
    """What is one tensor in the original's model, but for the output weight."""
    for name in weights:
        if name.startswith("text_decoder.bert.") and ".attention." not in name:
            weights[name] = weights[name.replace("text_decoder.bert", "text_encoder")]
    weights["text_decoder.cls.predictions.decoder.bias"] = weights["text_decoder.cls.predictions.bias"]
    return weights


@pytest.fixture
def original():
    """A small random checkpoint; its output weight is not its word embeddings, as in a file of blip_pretrain.py."""
    weights = {name: torch.randn(shape) * 0.15 for name, shape in SMALL.items()}
    for name in weights:
        if re.search(r"(LayerNorm|norm\d?)\.weight$", name):
            weights[name] += 1
        if name.endswith(("position_ids", "queue_ptr")):
            weights[name] = torch.arange(weights[name].numel()).view(SMALL[name])
    return share(weights)


def converted(weights, side=24):
    return blip_original.convert(weights, side, head_width=32, ids=IDS)


# The original's forward passes, on its own names


def attend(query, key, value, heads, mask=0.0):
    """Scaled dot products, `mask` added to the scores."""
    query, key, value = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (query, key, value))
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def apply(weights, name, states):
    return F.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normed(weights, name, states, eps):
    return F.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def see(weights, pixels):
    stem = "visual_encoder.patch_embed.proj"
    patches = F.conv2d(pixels, weights[f"{stem}.weight"], weights[f"{stem}.bias"], stride=8).flatten(2).transpose(1, 2)
    states = torch.cat([weights["visual_encoder.cls_token"].expand(len(pixels), -1, -1), patches], 1)
    states = states + weights["visual_encoder.pos_embed"]
    for number in range(2):
        block = f"visual_encoder.blocks.{number}"
        qkv = apply(weights, f"{block}.attn.qkv", normed(weights, f"{block}.norm1", states, 1e-6)).chunk(3, -1)
        states = states + apply(weights, f"{block}.attn.proj", attend(*qkv, heads=3))
        inner = F.gelu(apply(weights, f"{block}.mlp.fc1", normed(weights, f"{block}.norm2", states, 1e-6)))
        states = states + apply(weights, f"{block}.mlp.fc2", inner)
    return normed(weights, "visual_encoder.norm", states, 1e-6)


def read(weights, name, tokens, mask, image=None):
    """Text states: `mask` is added to self-attention's scores; with cross-attention where there is an image."""
    states = F.embedding(tokens, weights[f"{name}.embeddings.word_embeddings.weight"])
    states = states + weights[f"{name}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    states = normed(weights, f"{name}.embeddings.LayerNorm", states, 1e-12)
    for number in range(2):
        layer = f"{name}.encoder.layer.{number}"
        for kind in ("attention", "crossattention")[: 1 if image is None else 2]:
            of, seen = f"{layer}.{kind}", states if kind == "attention" else image
            query = apply(weights, f"{of}.self.query", states)
            key, value = apply(weights, f"{of}.self.key", seen), apply(weights, f"{of}.self.value", seen)
            context = attend(query, key, value, 2, mask if kind == "attention" else 0.0)
            states = normed(
                weights, f"{of}.output.LayerNorm", apply(weights, f"{of}.output.dense", context) + states, 1e-12
            )
        inner = F.gelu(apply(weights, f"{layer}.intermediate.dense", states))
        states = normed(
            weights, f"{layer}.output.LayerNorm", apply(weights, f"{layer}.output.dense", inner) + states, 1e-12
        )
    return states


def tell(weights, tokens, mask, image):
    """Logits of the decoder; blip_decoder reads the output weight last, into what is the word embeddings as well."""
    tied = weights | {WORDS: weights[OUT]}
    head = "text_decoder.cls.predictions"
    states = read(tied, "text_decoder.bert", tokens, mask, image)
    states = normed(tied, f"{head}.transform.LayerNorm", F.gelu(apply(tied, f"{head}.transform.dense", states)), 1e-12)
    return F.linear(states, tied[OUT], tied[f"{head}.bias"])


TOKENS = torch.tensor([[2, 7, 9, 21, 3], [2, 30, 3, 0, 0]])
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
PADDING = (1.0 - PADDED)[:, None, None] * -10000  # (2, 1, 1, 5)
LATER = torch.full((5, 5), -10000.0).triu(1)


def close(one, other):
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_image_tower_and_projection_see_what_the_originals_see(original):
    captioner, retriever = converted(original)
    pixels = torch.randn(2, 3, 24, 24)
    states = see(original, pixels)
    assert close(captioner.vision_model(pixels).last_hidden_state, states)
    assert close(retriever.vision_model(pixels).last_hidden_state, states)
    assert close(retriever.vision_proj(states[:, 0]), apply(original, "vision_proj", states[:, 0]))


def test_retrieval_reads_as_the_original_with_and_without_an_image(original):
    _, retriever = converted(original)
    pixels = torch.randn(2, 3, 24, 24)
    image = see(original, pixels)
    alone = read(original, "text_encoder", TOKENS, PADDING)
    assert close(retriever.text_encoder(TOKENS, attention_mask=PADDED).last_hidden_state, alone)
    assert close(retriever.text_proj(alone[:, 0]), apply(original, "text_proj", alone[:, 0]))
    both = read(original, "text_encoder", TOKENS, PADDING, image)
    matched = retriever(TOKENS, pixels, attention_mask=PADDED).itm_score
    assert close(matched, apply(original, "itm_head", both[:, 0]))
    faces = [
        F.normalize(apply(original, "vision_proj", image[:, 0])),
        F.normalize(apply(original, "text_proj", alone[:, 0])),
    ]
    alike = retriever(TOKENS, pixels, attention_mask=PADDED, use_itm_head=False).itm_score
    assert close(alike, faces[0] @ faces[1].T)


def test_the_decoder_tells_what_the_original_tells(original):
    captioner, _ = converted(original)
    pixels = torch.randn(2, 3, 24, 24)
    logits = captioner(pixels, TOKENS, attention_mask=PADDED).logits
    assert close(logits, tell(original, TOKENS, PADDING + LATER, see(original, pixels)))
    assert torch.equal(captioner.generate(pixels, max_new_tokens=2)[:, 0], torch.tensor([IDS.dec, IDS.dec]))


def test_every_tensor_arrives_unchanged_under_its_new_name(original):
    captioner, retriever = converted(original)
    new = {
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
        for old, better in new.items():
            name = name.replace(old, better) if name.startswith(("visual", "vision_model")) else name
        renamed[name] = weight
    renamed[WORDS] = original[OUT]
    states = captioner.state_dict() | retriever.state_dict()
    assert renamed.keys() == states.keys()
    assert all(torch.equal(weight, states[name]) for name, weight in renamed.items())
    assert captioner.get_input_embeddings().weight is captioner.text_decoder.get_output_embeddings().weight
    assert not torch.equal(retriever.text_encoder.embeddings.word_embeddings.weight, states[OUT])
    for model in (captioner, retriever):
        assert not model.training
        assert not any(weight.requires_grad or weight.is_meta for weight in model.parameters())
        assert not any(kept.is_meta for kept in model.buffers())


def test_half_precision_becomes_single(original):
    for model in converted({name: weight.half() for name, weight in original.items()}):
        assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
        assert torch.equal(model.vision_model.embeddings.class_embedding, original["visual_encoder.cls_token"].half())


# True sizes


@pytest.fixture(scope="module")
def base():
    """The published size, without its memory: all names, all shapes, no numbers."""
    return blip_original.convert(share({name: torch.empty(shape, device="meta") for name, shape in BASE.items()}), 384)


def test_every_key_of_the_published_size_is_used_or_dropped_on_purpose(base):
    used = {blip_original._original_name(name) for model in base for name in model.state_dict()}
    left = {name for name in BASE if name not in used}
    assert used < BASE.keys()
    assert len(BASE) == 2 * (4 + 12 * 12 + 2) + 3 * (5 + 12 * 26) + 8 + 2 + 7 + 4  # towers, BERTs, smaller parts
    kinds = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
    others = {name for name in left if not name.startswith(kinds)}
    assert others == {"image_queue", "text_queue", "queue_ptr", "temp"} | {
        f"{part}.embeddings.position_ids" for part in ("text_encoder", "text_decoder.bert")
    }


def test_parameters_are_as_many_as_published(base):
    """By hand, with d = 768: a ViT block has 12 d^2 + 13 d, BERT's layer with cross-attention 16 d^2 + 19 d.

    model_base_caption_capfilt_large.pth, which is the captioner alone, has 854 MB, of 2^20 bytes and four to a number
    (github.com/AUTOMATIC1111/stable-diffusion-webui, pull request 3152). blip-image-captioning-base is counted as
    247.4 M: the output weight once more beside the word embeddings.
    """
    d, words = 768, 30524
    image = d + 577 * d + (d * 3 * 16 * 16 + d) + 12 * (12 * d * d + 13 * d) + 2 * d
    text = (words + 512) * d + 2 * d + 12 * (16 * d * d + 19 * d)
    head = d * d + 3 * d + words
    captioner, retriever = base
    assert sum(weight.numel() for weight in captioner.parameters()) == image + text + head == 223_971_644
    assert (image + text + head) * 4 // 2**20 == 854
    assert image + text + head + words * d == 247_414_076
    assert (
        sum(weight.numel() for weight in captioner.state_dict().values()) == 247_414_076 + words
    )  # the bias twice too
    matching = 2 * (d * 256 + 256) + 2 * d + 2
    assert sum(weight.numel() for weight in retriever.parameters()) == image + text + matching == 223_744_258


def test_the_config_is_the_published_one(base):
    text, image = base[0].config.text_config, base[0].config.vision_config
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


def test_positions_of_the_same_size_stay_the_same_tensor(original):
    positions = original["visual_encoder.pos_embed"]
    assert blip_original.resample(positions, 3) is positions
    assert converted(original)[0].vision_model.embeddings.position_embedding.data_ptr() == positions.data_ptr()


def test_positions_are_resampled_bicubically_without_antialiasing():
    grid = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    positions = torch.cat([torch.tensor([7.0]), grid.flatten()]).view(1, 17, 1)
    shrunk = blip_original.resample(positions, 2)
    # a new center lies between two old ones: Keys' kernel with a = -0.75 gives -3/32, 19/32, 19/32, -3/32
    near, far = 19 / 32, -3 / 32
    assert shrunk.flatten().tolist() == pytest.approx([7, near * near, near * far, far * near, far * far])
    antialiased = F.interpolate(grid[None, None], size=(2, 2), mode="bicubic", antialias=True)
    assert not torch.allclose(shrunk[0, 1:, 0], antialiased.flatten(), atol=0.01)


def test_positions_of_another_side_are_torchs(original):
    positions = original["visual_encoder.pos_embed"]
    grown = converted(original, side=40)[1].vision_model.embeddings.position_embedding
    patches = positions[0, 1:].T.reshape(1, 96, 3, 3)
    expected = F.interpolate(patches, size=(5, 5), mode="bicubic", align_corners=False)[0].reshape(96, 25).T
    assert torch.equal(grown[0, 0], positions[0, 0])
    assert torch.equal(grown[0, 1:], expected)
    kept = converted(original)[1].vision_model.embeddings
    assert torch.equal(kept.interpolate_pos_encoding(torch.empty(1, 26, 96), 40, 40), grown)


# Faults


def message(weights, **settings):
    with pytest.raises(ValueError) as fault:
        converted(weights, **settings)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_missing_and_unknown_keys_are_named(original):
    del original["itm_head.bias"]
    assert message(original) == "lacks itm_head.bias"
    original["text_encoder.pooler.dense.weight"] = torch.zeros(64, 64)
    assert message(original) == "lacks itm_head.bias; has unknown keys text_encoder.pooler.dense.weight"
    named = [name for name in original if name.startswith("visual_encoder.blocks.1.")]
    for name in named:
        original[name.replace(".1.", ".2.")] = original.pop(name)
    assert message(original).count("visual_encoder.blocks.1.") == 5
    assert "and 8 more; has unknown" in message(original)  # 12 of the block, one bias


def test_five_unknown_keys_are_named_and_the_others_counted(original):
    original |= {name: torch.zeros(1) for name in ("temperature", *(f"head.{number}" for number in range(12)))}
    assert message(original) == "has unknown keys temperature, head.0, head.1, head.2, head.3 and 8 more"


@pytest.mark.parametrize(
    ("name", "shape", "told"),
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
def test_wrong_shapes_are_told_with_the_expected_ones(original, name, shape, told):
    original[name] = torch.zeros(shape)
    assert message(original) == told


def test_weights_that_sizes_come_from_may_not_lack(original):
    del original["visual_encoder.patch_embed.proj.weight"]
    assert message(original) == "lacks visual_encoder.patch_embed.proj.weight"


def test_checkpoints_of_one_task_are_refused_by_their_parts(original):
    caption = {
        name: weight for name, weight in original.items() if name.startswith(("visual_encoder.", "text_decoder."))
    }
    told = "holds no {}; expected a pretraining checkpoint of BLIP, which has all parts"
    assert message(caption) == told.format("text_encoder, vision_proj, text_proj, itm_head")
    retrieval = {name: weight for name, weight in original.items() if not name.startswith("text_decoder.")}
    retrieval |= {"idx_queue": torch.zeros(1, 10), "ptr_queue": torch.zeros(1)}
    assert message(retrieval) == told.format("text_decoder")
    assert message({}).startswith("holds no visual_encoder, text_encoder")


@pytest.mark.parametrize(
    "name",
    [
        WORDS,
        "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight",
        "text_encoder.encoder.layer.0.output.LayerNorm.bias",
        "text_decoder.cls.predictions.bias",
    ],
)
def test_two_unlike_tensors_for_one_shared_weight_are_refused(original, name):
    original[name] = original[name] + 1
    told = message(original)
    assert told.startswith("differ, though BLIP shares them: text_")
    assert told.count(" and ") == 1
    assert name in told


def test_a_shared_weight_may_have_one_name_only(original):
    whole = [model.state_dict() for model in converted(original)]
    for number, name in enumerate([name for name in original if name.startswith("text_decoder.bert.")]):
        if ".attention." not in name and "position_ids" not in name:
            del original[name if number % 2 else name.replace("text_decoder.bert", "text_encoder")]
    del original["text_decoder.cls.predictions.decoder.bias"]
    for one, other in zip(whole, converted(original), strict=True):
        assert all(torch.equal(weight, one[name]) for name, weight in other.state_dict().items())


def test_without_an_output_weight_the_word_embeddings_serve(original):
    words = original[WORDS]
    del original[OUT], original[WORDS]
    captioner, _ = converted(original)
    assert torch.equal(captioner.text_decoder.cls.predictions.decoder.weight, words)


def test_sides_heads_and_ids_that_cannot_be_are_refused(original):
    assert message(original, side=20) == "a side of 20 pixels is no multiple of the checkpoint's patch of 8"
    assert "a side of 0 pixels" in message(original, side=0)
    with pytest.raises(ValueError, match="widths of 96 and 64 are no multiples of a head's 64"):
        blip_original.convert(original, 24, ids=IDS)
    with pytest.raises(ValueError, match=r"SpecialIds\(pad=0, sep=102, dec=30522\) do not fit a vocabulary of 40"):
        blip_original.convert(original, 24, head_width=32)


# Tokenizer


@pytest.fixture
def vocabulary(tmp_path):
    """20 words, then 18 that BERT never uses: 40 with BLIP's two."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*VOCABULARY.split(), *(f"[unused{number}]" for number in range(18))]) + "\n")
    return path


def test_word_pieces_are_berts_and_blips_tokens_follow_them(vocabulary, tmp_path):
    made = blip_original.tokenizer(vocabulary)
    made.save_pretrained(tmp_path / "kept")
    reread = blip.load_tokenizer(str(tmp_path / "kept"))
    theirs = BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=True)
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
    for tokenizer in (made, reread):
        assert len(tokenizer) == 40
        assert (tokenizer.bos_token, tokenizer.model_max_length) == ("[DEC]", 512)
        assert tokenizer.convert_tokens_to_ids(["[PAD]", "[SEP]", "[DEC]", "[ENC]", "##fish"]) == [0, 3, 38, 39, 9]
        assert tokenizer("a cat").input_ids == [2, 5, 6, 3]
        assert [tokenizer(text).input_ids for text in texts] == [theirs(text).input_ids for text in texts]
        assert (
            tokenizer.decode(tokenizer("a cats, red catfish.").input_ids, skip_special_tokens=True)
            == "a cats, red catfish."
        )
        assert tokenizer.decode(tokenizer("a [DEC] dog [ENC]").input_ids, skip_special_tokens=True) == "a dog"
        assert tokenizer(["a", "a cat"], padding=True).input_ids == [[2, 5, 3, 0], [2, 5, 6, 3]]


def test_blips_tokens_are_where_the_original_has_them(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\x85", *map(str, range(30517))]))
    made = blip_original.tokenizer(path)
    assert made.convert_tokens_to_ids(["30516", "[DEC]", "[ENC]"]) == [30521, 30522, 30523]
    assert len(made) == 30524


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("[PAD] [CLS] a", r"lacks \[UNK\], \[SEP\]; expected bert-base-uncased's"),
        ("[PAD] [UNK] [CLS] [SEP] a a", "has a word twice"),
        ("[PAD] [UNK] [CLS] [SEP] [ENC]", r"or \[DEC\] or \[ENC\]"),
    ],
)
def test_vocabularies_of_something_else_are_refused(tmp_path, words, told):
    path = tmp_path / "vocab.txt"
    path.write_text(words.replace(" ", "\n"))
    with pytest.raises(ValueError, match=told):
        blip_original.tokenizer(path)


# Files


@pytest.mark.parametrize("kind", ["pth", "bare.pth", "old.pth", "safetensors"])
def test_a_folder_of_a_file_is_what_the_project_loads(original, vocabulary, tmp_path, kind):
    source, folder = tmp_path / f"model.{kind}", tmp_path / "blip"
    if kind == "safetensors":
        save_file({name: weight.clone() for name, weight in original.items()}, source)
    else:
        held = original if kind == "bare.pth" else {"model": original, "epoch": 19}
        torch.save(held, source, _use_new_zipfile_serialization=kind != "old.pth")
    blip_original.convert_file(source, vocabulary, folder, side=40, head_width=32)
    captioner, retriever = converted(original, side=40)
    for model in (captioner, retriever):
        loaded = blip.load(type(model), str(folder))
        assert isinstance(loaded, (BlipForConditionalGeneration, BlipForImageTextRetrieval))
        states = loaded.state_dict()
        assert states.keys() == model.state_dict().keys()
        assert all(torch.equal(weight, states[name]) for name, weight in model.state_dict().items())
        assert loaded.config.text_config.bos_token_id == 38
        assert loaded.config.vision_config.layer_norm_eps == 1e-6
    assert (
        load_file(folder / "model.safetensors").keys() == captioner.state_dict().keys() | retriever.state_dict().keys()
    )
    image = torch.randn(2, 7, 96)
    logits = captioner.text_decoder(TOKENS, encoder_hidden_states=image).logits
    assert torch.equal(blip.load_decoder(str(folder))(TOKENS, encoder_hidden_states=image).logits, logits)
    assert blip.load_preprocessing(str(folder)) == blip.Preprocessing(40, MEAN, STD)
    tokenizer = blip.load_tokenizer(str(folder))
    assert (tokenizer.bos_token, tokenizer("a cat").input_ids) == ("[DEC]", [2, 5, 6, 3])


def test_converted_twice_is_the_same_bytes(original, vocabulary, tmp_path):
    torch.save({"model": original}, tmp_path / "model.pth")
    for name in ("one", "again"):
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, tmp_path / name, 24, 32)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(names)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"model": {"epoch": 3}}, r"model.pth holds other things than tensors: epoch"),
        ([torch.zeros(1)], r"model.pth holds a list; expected tensors by name"),
        ({"model": {"temp": torch.zeros(())}}, r"model.pth: holds no visual_encoder"),
        ({"model": {"a": os.getcwd}}, r"model.pth is not a file of tensors"),
    ],
)
def test_files_of_something_else_are_refused(vocabulary, tmp_path, held, told):
    torch.save(held, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=told) as fault:
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, tmp_path / "blip")
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "blip").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_broken_and_missing_files_are_told(vocabulary, tmp_path, name):
    with pytest.raises(FileNotFoundError):
        blip_original.convert_file(tmp_path / name, vocabulary, tmp_path / "blip")
    for broken in (b"", b"no tensors"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{name} is not a file of tensors"):
            blip_original.convert_file(tmp_path / name, vocabulary, tmp_path / "blip")


def test_a_vocabulary_of_another_size_is_refused(original, vocabulary, tmp_path):
    torch.save(original, tmp_path / "model.pth")
    vocabulary.write_text(vocabulary.read_text().removesuffix("[unused17]\n"))
    with pytest.raises(ValueError, match=r"vocab.txt makes 39 tokens with BLIP's two, .*model.pth embeds 40"):
        blip_original.convert_file(tmp_path / "model.pth", vocabulary, tmp_path / "blip", 24, 32)
