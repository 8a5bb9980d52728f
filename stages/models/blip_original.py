"""Convert BLIP's original checkpoints (github.com/salesforce/BLIP) to the classes of transformers.

The checkpoint layout is documented by that repository: `models/blip_pretrain.py` (parts, shared weights),
`models/vit.py` (timm's names, norm epsilon 1e-6, resampled positions), `models/med.py` and `configs/bert_config.json`
(BERT without token types, norm epsilon 1e-12), `models/blip.py` (tokenizer, loading). Which checkpoint the published
captioner was converted from: `convert_blip_original_pytorch_to_hf.py` of transformers 4.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.modeling_blip_text import BlipTextEmbeddings

from stages.core.messages import join_names
from stages.models import blip
from stages.models.weights import NAMED_KEYS, check_weights, format_shape, read_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which BLIP uses too
STD = (0.26862954, 0.26130258, 0.27577711)
SIDE = 384  # of the images that BLIP is evaluated on, in pixels; it was pretrained on 224
HEAD_WIDTH = 64  # features per attention head, in ViT-B, ViT-L and BERT
BICUBIC = 3  # Pillow's `Image.Resampling.BICUBIC`

PARTS = ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head")
DROPPED = re.compile(
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..+"  # momentum copies
    r"|(image|text|idx)_queue|queue_ptr|ptr_queue"  # negatives of the contrastive losses, and the write position
    r"|temp"  # temperature of the contrastive loss: it does not change which pair is most similar
    r"|text_(encoder|decoder\.bert)\.embeddings\.position_ids"  # 0, 1, 2, ...: transformers creates them
)

POSITIONS = "visual_encoder.pos_embed"
ENCODER = "text_encoder."
DECODER = "text_decoder.bert."
SELF_ATTENTION = ".attention."  # the one kind of layer that text encoder and decoder do not share
ENCODER_EMBEDDINGS = "text_encoder.embeddings.word_embeddings.weight"
DECODER_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
OUTPUT_WEIGHT = "text_decoder.cls.predictions.decoder.weight"
OUTPUT_BIASES = ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias")


@dataclass(frozen=True)
class SpecialIds:
    """Token IDs in BLIP's config: those of bert-base-uncased, and the first ID after its vocabulary."""

    pad: int = 0
    sep: int = 102
    dec: int = 30522  # the first token of a caption


def convert(
    checkpoint: dict[str, Tensor], side: int, head_width: int = HEAD_WIDTH, ids: SpecialIds | None = None
) -> tuple[BlipForConditionalGeneration, BlipForImageTextRetrieval]:
    """The captioner and the retriever, frozen and in eval mode, with the weights of an original pretraining checkpoint.

    `checkpoint` maps original names to tensors (the entry `model` of the file); all sizes come from their shapes. The
    position embeddings `(1, 1 + n * n, dim)` are resampled to square images of `side` pixels. float32 tensors are not
    copied: both models and `checkpoint` share them.

    Text encoder and decoder share all weights but their self-attention, and the two output biases are one. The output
    weight is the decoder's word embeddings, so it is the encoder's too: `blip_pretrain.py` gives the encoder the
    decoder's tensors. Where a file has only one of such names, it is used for all. In a file whose output weight is
    another tensor, it also replaces the captioner's word embeddings: `blip_decoder` ties the two and loads it last.

    Raises `ValueError` for a missing part or key, an unknown key, an unexpected shape, two different tensors for one
    shared weight, a `side` that is not a multiple of the patch size, and IDs outside the vocabulary. The message is one
    line and names at most five keys of a kind.
    """
    weights = {name: weight for name, weight in checkpoint.items() if not DROPPED.fullmatch(name)}
    _check_parts(weights)
    duplicates = _fill_shared(weights)
    config = _derive_config(weights, side, head_width, ids or SpecialIds())
    with torch.device("meta"):  # no memory, and no time spent on random weights
        captioner = blip.build(BlipForConditionalGeneration, config)
        retriever = blip.build(BlipForImageTextRetrieval, config)
    _check_weights(weights, checkpoint, captioner.state_dict() | retriever.state_dict())
    _check_equal(weights, duplicates)
    weights = {name: weight.float() for name, weight in weights.items()}
    weights[DECODER_EMBEDDINGS] = weights[OUTPUT_WEIGHT]
    vision_config: Any = config.vision_config
    weights[POSITIONS] = resample(weights[POSITIONS], side // vision_config.patch_size)
    for model in (captioner, retriever):
        _load_weights(model, weights)
    return captioner, retriever


def resample(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings `(1, 1 + grid * grid, dim)` from `(1, 1 + n * n, dim)`; the class token's come first.

    Bicubic, corners not aligned, not antialiased: as `interpolate_pos_embed` in BLIP's `models/vit.py` does when it
    loads a checkpoint. timm's `resample_abs_pos_embed` differs on any other grid: it antialiases, for which torch uses
    another cubic kernel (a = -0.5 instead of -0.75). transformers' `interpolate_pos_encoding` computes the same as this
    function, but in every forward pass, and only on request. Returns `positions` itself if `n` equals `grid`.

    Raises `ValueError` if the patch positions do not form a square.
    """
    count = positions.shape[1] - 1
    rows = isqrt(max(count, 0))
    if rows == 0 or rows * rows != count:
        raise ValueError(f"{POSITIONS} is {format_shape(positions.shape)}, expected 1 + n * n positions")
    if rows == grid:
        return positions
    patches = positions[:, 1:].transpose(1, 2).unflatten(2, (rows, rows))  # (1, dim, n, n)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    patches = patches.flatten(2).transpose(1, 2)  # (1, grid * grid, dim)
    return torch.cat([positions[:, :1], patches], dim=1)


def tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """BERT's lower-casing word-piece tokenizer from a `vocab.txt`, with `[DEC]` and `[ENC]` as its last two tokens.

    Equals `init_tokenizer` of BLIP's `models/blip.py`; with bert-base-uncased the two are 30522 and 30523. `[DEC]` is
    the `bos_token`; `[CLS]` is put before a text and `[SEP]` after it.

    Raises `FileNotFoundError` for a missing file, and `ValueError` for one that lacks a special token of BERT, contains
    one of BLIP's, or lists a word twice.
    """
    # Not `splitlines`, which also splits at characters that a word may contain.
    words = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    index = {word: number for number, word in enumerate(words)}
    *bert_tokens, dec, enc = blip.SPECIAL_TOKENS
    missing = [token for token in bert_tokens if token not in index]
    if missing:
        raise ValueError(f"{vocabulary} lacks {', '.join(missing)}; expected bert-base-uncased's vocab.txt")
    if len(index) < len(words) or dec in index or enc in index:
        raise ValueError(f"{vocabulary} has a word twice, or {dec} or {enc}; expected bert-base-uncased's vocab.txt")
    roles = dict(blip.TOKEN_ROLES)
    if "[MASK]" in index:
        roles["mask_token"] = "[MASK]"
    pieces = Tokenizer(models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece(prefix="##")
    pieces.post_processor = blip.add_cls_and_sep(index)
    pieces.add_special_tokens([*roles.values(), dec, enc])  # new tokens get the next IDs, in this order
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=dec, extra_special_tokens=[enc], model_max_length=512, **roles
    )


def convert_file(source: Path, vocabulary: Path, folder: Path, side: int = SIDE, head_width: int = HEAD_WIDTH) -> None:
    """Write a folder as `blip.save` does, from an original checkpoint and bert-base-uncased's `vocab.txt`.

    `source` is a `.pth` file of `torch.save`, with its tensors under `model` or at the top level, or a `.safetensors`
    file. A `.pth` file is mapped into memory, not read, so the weights are in memory only once, when `blip.save` clones
    them.

    Raises `FileNotFoundError` for a missing file, and `ValueError` as `convert`, `tokenizer` and `read_weights` do, or
    if vocabulary and checkpoint differ in size.
    """
    words = tokenizer(vocabulary)
    ids = SpecialIds(words.pad_token_id, words.sep_token_id, words.bos_token_id)
    weights = read_weights(source, lambda name: not DROPPED.fullmatch(name))
    try:
        captioner, retriever = convert(weights, side, head_width, ids)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    text_config: Any = captioner.config.text_config
    if text_config.vocab_size != len(words):
        raise ValueError(
            f"{vocabulary} makes {len(words)} tokens with BLIP's two, {source} embeds {text_config.vocab_size}"
        )
    size = {"height": side, "width": side}
    processor = BlipImageProcessorPil(size=size, resample=BICUBIC, image_mean=MEAN, image_std=STD)
    blip.save(folder, captioner, retriever, words, processor)


def _check_parts(weights: dict[str, Tensor]) -> None:
    """Raise `ValueError` for a fine-tuned checkpoint, which has only the parts of its task."""
    missing = [part for part in PARTS if not any(name.startswith(f"{part}.") for name in weights)]
    if missing:
        raise ValueError(
            f"holds no {', '.join(missing)}; expected a pretraining checkpoint of BLIP, which has all parts"
        )


def _fill_shared(weights: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Add the missing names of every shared weight to `weights`, in place.

    Returns the pairs of names that were both present, whose tensors must be equal.
    """
    suffixes = set()
    for name in weights:
        for prefix in (ENCODER, DECODER):
            if name.startswith(prefix) and SELF_ATTENTION not in name:
                suffixes.add(name.removeprefix(prefix))
    pairs = [(ENCODER + suffix, DECODER + suffix) for suffix in sorted(suffixes)]
    duplicates = []
    for pair in (*pairs, OUTPUT_BIASES):
        present = [name for name in pair if name in weights]
        if len(present) == 2:
            duplicates.append(pair)
        _fill(weights, pair)
    # Not checked for equality: see `convert`.
    _fill(weights, (DECODER_EMBEDDINGS, ENCODER_EMBEDDINGS, OUTPUT_WEIGHT))
    return duplicates


def _fill(weights: dict[str, Tensor], names: Sequence[str]) -> None:
    """Use the first of `names` that `weights` has for those that it lacks, in place."""
    present = [name for name in names if name in weights]
    if present:
        for name in names:
            weights.setdefault(name, weights[present[0]])


def _derive_config(weights: dict[str, Tensor], side: int, head_width: int, ids: SpecialIds) -> BlipConfig:
    """The published config with the sizes of `weights`. Checks only the shapes that sizes come from."""
    layer = "text_encoder.encoder.layer"
    dim, _, patch, _ = _get_shape(weights, "visual_encoder.patch_embed.proj.weight", 4)
    vocabulary, width = _get_shape(weights, "text_encoder.embeddings.word_embeddings.weight", 2)
    if side < patch or side % patch:
        raise ValueError(f"a side of {side} pixels is not a multiple of the checkpoint's patch size, {patch}")
    if dim % head_width or width % head_width:
        raise ValueError(f"widths of {dim} and {width} are not multiples of the head width, {head_width}")
    if max(ids.pad, ids.sep, ids.dec) >= vocabulary:
        raise ValueError(f"{ids} do not fit a vocabulary of {vocabulary}")
    vision = {
        "hidden_size": dim,
        "intermediate_size": _get_shape(weights, "visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _count_layers(weights, "visual_encoder.blocks"),
        "num_attention_heads": dim // head_width,
        "image_size": side,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,  # transformers' default is 1e-5
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": width,
        "intermediate_size": _get_shape(weights, f"{layer}.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": _count_layers(weights, layer),
        "num_attention_heads": width // head_width,  # transformers' default is 8 heads of 96
        "encoder_hidden_size": dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": _get_shape(weights, "text_encoder.embeddings.position_embeddings.weight", 2)[0],
        "layer_norm_eps": 1e-12,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.dec,
        "sep_token_id": ids.sep,
        "eos_token_id": ids.sep,
        "hidden_act": "gelu",
    }
    projection = _get_shape(weights, "vision_proj.weight", 2)[0]
    return BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=projection)


def _get_shape(weights: dict[str, Tensor], name: str, axes: int) -> torch.Size:
    """The shape of a weight. Raises `ValueError` if it is missing or has another number of axes."""
    if name not in weights:
        raise ValueError(f"lacks {name}")
    shape = weights[name].shape
    if len(shape) != axes:
        raise ValueError(f"{name} is {format_shape(shape)}, expected {axes} axes")
    return shape


def _count_layers(weights: dict[str, Tensor], prefix: str) -> int:
    """One more than the highest layer index: a gap is reported later, as missing keys."""
    matches = [re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in weights]
    return 1 + max(int(match[1]) for match in matches if match)


def _original_name(name: str) -> str:
    """The original name of a weight of either class. Only those of the image tower differ."""
    if not name.startswith("vision_model."):
        return name
    return "visual_encoder." + blip.timm_key(name.removeprefix("vision_model."))


def _check_weights(weights: dict[str, Tensor], checkpoint: dict[str, Tensor], state_dict: dict[str, Tensor]) -> None:
    """Raise `ValueError`, on one line, if names or shapes differ from those of `state_dict`.

    Names that `_fill_shared` added to those of `checkpoint` are left out, so that each problem is reported once.
    """
    expected = {_original_name(name): weight for name, weight in state_dict.items()}
    if POSITIONS in weights and weights[POSITIONS].ndim == 3:  # any number of positions, as they are resampled
        expected[POSITIONS] = expected[POSITIONS][:, :1].expand(-1, weights[POSITIONS].shape[1], -1)
    added = weights.keys() - checkpoint.keys()
    check_weights(
        {name: weight for name, weight in weights.items() if name not in added},
        {name: weight for name, weight in expected.items() if name not in added},
    )


def _check_equal(weights: dict[str, Tensor], pairs: Iterable[tuple[str, str]]) -> None:
    """Raise `ValueError` if a file has two different tensors for one shared weight."""
    different = []
    for first, second in pairs:
        # Identity first: tensors on the meta device have no values to compare.
        if weights[first] is not weights[second] and not torch.equal(weights[first], weights[second]):
            different.append(f"{first} and {second}")
    if different:
        raise ValueError(f"differ, though BLIP shares them: {join_names(different, NAMED_KEYS)}")


def _load_weights(model: BlipForConditionalGeneration | BlipForImageTextRetrieval, weights: dict[str, Tensor]) -> None:
    """Assign weights to a model on the meta device, freeze it and put it in eval mode."""
    state_dict = {name: weights[_original_name(name)] for name in model.state_dict()}
    model.load_state_dict(state_dict, assign=True)
    model.tie_weights()  # `assign` gives each name a parameter of its own
    # Not in any state dict, so still on the meta device.
    for module in model.modules():
        if isinstance(module, BlipTextEmbeddings):
            position_ids = torch.arange(module.position_embeddings.num_embeddings).expand(1, -1)
            module.position_ids = nn.Buffer(position_ids, persistent=False)
    model.eval().requires_grad_(False)
