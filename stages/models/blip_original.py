"""BLIP's original checkpoints (github.com/salesforce/BLIP) as transformers' two classes and a folder of `blip.save`.

Facts about the layout are from that repository: `models/blip_pretrain.py` (parts, what is shared), `models/vit.py`
(timm's names, norms of 1e-6, how positions are resampled), `models/med.py` and `configs/bert_config.json` (BERT without
token types, norms of 1e-12), `models/blip.py` (tokenizer, what loading does). Which checkpoint the published captioner
was made of is from `convert_blip_original_pytorch_to_hf.py` of transformers 4.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.modeling_blip_text import BlipTextEmbeddings

from stages.models import blip
from stages.models.weights import read_weights, summarize_names

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as BLIP took them
SIDE = 384  # of the images that BLIP is evaluated on; it was pretrained on 224
HEAD = 64  # width of one attention head, in ViT-B, ViT-L and BERT

PARTS = ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "itm_head")
DROPPED = re.compile(
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..+"  # momentum copies
    r"|(image|text|idx)_queue|queue_ptr|ptr_queue"  # what the losses contrast with, and where its next row goes
    r"|temp"  # the contrastive loss' temperature: it does not change who is most similar
    r"|text_(encoder|decoder\.bert)\.embeddings\.position_ids"  # 0, 1, 2, ...: transformers makes them itself
)

POSITIONS = "visual_encoder.pos_embed"
ENCODER, DECODER = "text_encoder.", "text_decoder.bert."
OWN = ".attention."  # the decoder's self-attention is its own, all else is the encoder's too
WORDS, OUT_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.decoder.weight"
BIASES = ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias")

TIMM = {  # parts of a name in transformers' image tower, and what timm calls them; it has neither of the first two
    "embeddings": "",
    "encoder": "",
    "vision_model": "visual_encoder",
    "class_embedding": "cls_token",
    "position_embedding": "pos_embed",
    "patch_embedding": "patch_embed.proj",
    "layers": "blocks",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn": "attn",
    "projection": "proj",
    "post_layernorm": "norm",
}


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that BLIP's config names; those of bert-base-uncased and the first one behind it."""

    pad: int = 0
    sep: int = 102
    dec: int = 30522  # a caption's first token


def convert(
    checkpoint: dict[str, Tensor], side: int, head_width: int = HEAD, ids: SpecialIds | None = None
) -> tuple[BlipForConditionalGeneration, BlipForImageTextRetrieval]:
    """Both classes, frozen and in eval mode, with the weights of an original pretraining checkpoint.

    `checkpoint` maps original names to tensors (what the file keeps under `model`); all sizes come from their shapes.
    `side` is that of the square images, in pixels: the position embeddings `(1, 1 + n * n, dim)` are resampled to it.
    Tensors in float32 are not copied, so both models and `checkpoint` share them.

    Text encoder and decoder share all but their self-attention, and the two output biases are one: where a file has
    only one name of such a pair, it stands for both. The output weight is a case of its own: `blip_pretrain.py` puts
    the encoder's word embeddings into the decoder after the output layer was tied to the decoder's former ones, so
    the two differ in a file of that code; `blip_decoder` ties them again, and the output weight, read last, wins for
    both. The same is done here, as a captioner with other inputs would not be the published one.

    Raises `ValueError` for a checkpoint that lacks a part or a key, has a key of no known kind or one of another
    shape, or two different tensors for one shared weight; for a `side` that is no multiple of the patch; for ids
    that the vocabulary has not. The message is one line and names five keys at most.
    """
    weights = {name: weight for name, weight in checkpoint.items() if not DROPPED.fullmatch(name)}
    _require_parts(weights)
    pairs = _fill_shared(weights)
    config = _config(weights, side, head_width, ids or SpecialIds())
    with torch.device("meta"):  # shapes without memory, and no time spent on random weights
        captioner = blip.build(BlipForConditionalGeneration, config)
        retriever = blip.build(BlipForImageTextRetrieval, config)
    _require_keys(weights, checkpoint.keys(), captioner, retriever)
    _require_same(weights, pairs)
    weights = {name: weight.float() for name, weight in weights.items()}
    weights[WORDS] = weights[OUT_WORDS]
    weights[POSITIONS] = resample(weights[POSITIONS], side // config.vision_config.patch_size)
    for model in (captioner, retriever):
        _load(model, weights)
    return captioner, retriever


def resample(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings `(1, 1 + grid * grid, dim)` of `(1, 1 + n * n, dim)`, the class token's first and untouched.

    Bicubic, corners not aligned, not antialiased: what `interpolate_pos_embed` in BLIP's `models/vit.py` does when it
    loads a checkpoint. timm's `resample_abs_pos_embed` antialiases, in torch with another cubic kernel (a = -0.5 for
    -0.75), so it differs on grids that shrink and that grow. transformers' `interpolate_pos_encoding` computes the
    same as here, but at every forward pass, and only where it is asked for. The tensor itself where `n` is `grid`.

    Raises `ValueError` where the patches' positions make no square.
    """
    count = positions.shape[1] - 1
    rows = isqrt(max(count, 0))
    if rows == 0 or rows * rows != count:
        raise ValueError(f"{POSITIONS} is {_written(positions.shape)}, expected 1 + n * n positions")
    if rows == grid:
        return positions
    patches = positions[:, 1:].transpose(1, 2).unflatten(2, (rows, rows))  # (1, dim, n, n)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """BERT's lower-casing word pieces from a `vocab.txt`, with `[DEC]` and `[ENC]` behind its last word.

    As `init_tokenizer` in BLIP's `models/blip.py` makes it of bert-base-uncased, where they are 30522 and 30523.
    `[DEC]` is the `bos_token`; `[CLS]` stands before a text and `[SEP]` behind it.

    Raises `FileNotFoundError` for a missing file, `ValueError` for one that lacks a special token of BERT's, has one
    of BLIP's, or has a word twice.
    """
    words = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a word may hold other line breaks
    index = {word: number for number, word in enumerate(words)}
    *bert, dec, enc = blip.SPECIAL
    lacking = [word for word in bert if word not in index]
    if lacking:
        raise ValueError(f"{vocabulary} lacks {', '.join(lacking)}; expected bert-base-uncased's vocab.txt")
    if len(index) < len(words) or dec in index or enc in index:
        raise ValueError(f"{vocabulary} has a word twice, or {dec} or {enc}; expected bert-base-uncased's vocab.txt")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if "[MASK]" in index:
        names["mask_token"] = "[MASK]"
    pieces = Tokenizer(models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece(prefix="##")
    ends = [(name, index[name]) for name in ("[CLS]", "[SEP]")]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    pieces.add_special_tokens([*names.values(), dec, enc])  # new ones take the next ids in this order
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=dec, extra_special_tokens=[enc], model_max_length=512, **names
    )


def convert_file(source: Path, vocabulary: Path, folder: Path, side: int = SIDE, head_width: int = HEAD) -> None:
    """Write a folder of `blip.save` from an original checkpoint and bert-base-uncased's `vocab.txt`.

    `source` is a `.pth` of `torch.save`, with its tensors under `model` or at the top, or a `.safetensors` file. A
    `.pth` is mapped, not read, so that the weights are in memory once, when `blip.save` clones them.

    Raises `FileNotFoundError` for a missing file, `ValueError` as `convert` and `tokenizer` do, for a file of
    anything but tensors, and for a vocabulary of another size than the checkpoint's.
    """
    words = tokenizer(vocabulary)
    ids = SpecialIds(words.pad_token_id, words.sep_token_id, words.bos_token_id)
    weights = read_weights(source, lambda name: not DROPPED.fullmatch(name))
    try:
        captioner, retriever = convert(weights, side, head_width, ids)
    except ValueError as fault:
        raise ValueError(f"{source}: {fault}") from fault
    rows = captioner.config.text_config.vocab_size
    if rows != len(words):
        raise ValueError(f"{vocabulary} makes {len(words)} tokens with BLIP's two, {source} embeds {rows}")
    size = {"height": side, "width": side}
    processor = BlipImageProcessorPil(size=size, resample=3, image_mean=MEAN, image_std=STD)  # 3: bicubic
    blip.save(folder, captioner, retriever, words, processor)


def _require_parts(weights: dict[str, Tensor]) -> None:
    """Fine-tuned checkpoints of the original hold some parts only."""
    lacking = [part for part in PARTS if not any(name.startswith(part + ".") for name in weights)]
    if lacking:
        raise ValueError(
            f"holds no {', '.join(lacking)}; expected a pretraining checkpoint of BLIP, which has all parts"
        )


def _fill_shared(weights: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Give both names of every shared weight to what has one; the pairs that the file has both of."""
    shared = {name.removeprefix(ENCODER) for name in weights if name.startswith(ENCODER)}
    shared |= {name.removeprefix(DECODER) for name in weights if name.startswith(DECODER)}
    pairs = [(ENCODER + name, DECODER + name) for name in sorted(shared) if OWN not in name]
    both = [pair for pair in (*pairs, BIASES) if _fill(weights, *pair)]
    _fill(weights, WORDS, OUT_WORDS)  # of which the file may have two different ones
    return both


def _fill(weights: dict[str, Tensor], one: str, other: str) -> bool:
    """True where both are there already; else the one that is there gets the other's name too."""
    if one in weights and other in weights:
        return True
    for name, source in ((one, other), (other, one)):
        if source in weights:
            weights[name] = weights[source]
    return False


def _config(weights: dict[str, Tensor], side: int, head_width: int, ids: SpecialIds) -> BlipConfig:
    """The published config, with sizes as the weights have them; the shapes themselves are checked elsewhere."""
    layer = "text_encoder.encoder.layer"
    dim, _, patch, _ = _shape(weights, "visual_encoder.patch_embed.proj.weight", 4)
    vocabulary, width = _shape(weights, "text_encoder.embeddings.word_embeddings.weight", 2)
    if side < patch or side % patch:
        raise ValueError(f"a side of {side} pixels is no multiple of the checkpoint's patch of {patch}")
    if dim % head_width or width % head_width:
        raise ValueError(f"widths of {dim} and {width} are no multiples of a head's {head_width}")
    if max(ids.pad, ids.sep, ids.dec) >= vocabulary:
        raise ValueError(f"{ids} do not fit a vocabulary of {vocabulary}")
    image = {
        "hidden_size": dim,
        "intermediate_size": _shape(weights, "visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _layers(weights, "visual_encoder.blocks"),
        "num_attention_heads": dim // head_width,
        "image_size": side,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,  # transformers' default is 1e-5
    }
    text = {
        "hidden_size": width,
        "intermediate_size": _shape(weights, f"{layer}.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": _layers(weights, layer),
        "num_attention_heads": width // head_width,  # transformers' default is 8, of 96
        "encoder_hidden_size": dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(weights, "text_encoder.embeddings.position_embeddings.weight", 2)[0],
        "layer_norm_eps": 1e-12,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.dec,
        "sep_token_id": ids.sep,
        "eos_token_id": ids.sep,
    }
    projection = _shape(weights, "vision_proj.weight", 2)[0]
    activation = {"hidden_act": "gelu"}
    return BlipConfig(
        vision_config=image | activation, text_config=text | activation, image_text_hidden_size=projection
    )


def _shape(weights: dict[str, Tensor], name: str, axes: int) -> torch.Size:
    """The shape of a weight that sizes are taken from."""
    if name not in weights:
        raise ValueError(f"lacks {name}")
    shape = weights[name].shape
    if len(shape) != axes:
        raise ValueError(f"{name} is {_written(shape)}, expected {axes} axes")
    return shape


def _layers(weights: dict[str, Tensor], before: str) -> int:
    """How many layers there are by their highest number, so that a gap is told as missing keys."""
    numbered = re.compile(re.escape(before) + r"\.(\d+)\.")
    return 1 + max(int(found[1]) for found in map(numbered.match, weights) if found)


def _original(name: str) -> str:
    """What the original calls a weight of either class: only the image tower's differ."""
    if not name.startswith("vision_model."):
        return name
    return ".".join(filter(None, (TIMM.get(part, part) for part in name.split("."))))


def _require_keys(
    weights: dict[str, Tensor],
    kept: Iterable[str],
    *built: BlipForConditionalGeneration | BlipForImageTextRetrieval,
) -> None:
    """Key for key, in one line for all that is wrong; `kept` are the file's, to which `weights` adds second names.

    Any number of positions will do, as they are resampled.
    """
    expected = {_original(name): weight.shape for model in built for name, weight in model.state_dict().items()}
    if POSITIONS in weights and weights[POSITIONS].ndim == 3:
        expected[POSITIONS] = torch.Size([1, weights[POSITIONS].shape[1], expected[POSITIONS][2]])
    present = [name for name in kept if name in weights]
    wrong = [
        f"{name} is {_written(weights[name].shape)}, expected {_written(expected[name])}"
        for name in present
        if name in expected and weights[name].shape != expected[name]
    ]
    faults = {
        "lacks": [name for name in expected if name not in weights],
        "has unknown keys": [name for name in present if name not in expected],
        "has wrong shapes:": wrong,
    }
    told = [f"{what} {summarize_names(names)}" for what, names in faults.items() if names]
    if told:
        raise ValueError("; ".join(told))


def _require_same(weights: dict[str, Tensor], pairs: Iterable[tuple[str, str]]) -> None:
    """One weight under two names, or a file of something else."""
    unlike = [
        f"{one} and {other}"
        for one, other in pairs
        if weights[one] is not weights[other] and not torch.equal(weights[one], weights[other])
    ]
    if unlike:
        raise ValueError(f"differ, though BLIP shares them: {summarize_names(unlike)}")


def _load(model: BlipForConditionalGeneration | BlipForImageTextRetrieval, weights: dict[str, Tensor]) -> None:
    """Put weights into a model without memory; its positions' numbers, which no file has, are made anew."""
    own = {name: weights[_original(name)] for name in model.state_dict()}
    model.load_state_dict(own, assign=True)
    model.tie_weights()  # assigned, every name has a parameter of its own
    for module in model.modules():
        if isinstance(module, BlipTextEmbeddings):
            module.position_ids = torch.arange(module.position_embeddings.num_embeddings).expand(1, -1)
    model.eval().requires_grad_(False)


def _written(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a single number"
