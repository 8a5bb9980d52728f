"""BLIP (Li et al. 2022) in the classes of transformers: the small model, its tokenizer, and checkpoint folders.

One file of weights serves `BlipForConditionalGeneration` and `BlipForImageTextRetrieval`: they share the image tower,
and each loads the keys of its own parts.
"""

import re
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.core.atomic import write_text
from stages.core.weights_file import save_weights
from stages.models import vit
from stages.models.weights import check_finite_weights, read_weights

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "[ENC]")  # BERT's; BLIP's to start decoding, matching
TOKEN_ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

PARTS = ("vision_model", "text_decoder", "text_encoder", "vision_proj", "text_proj", "itm_head")  # of both classes

TIMM_NAMES = {  # modules of transformers' image tower, and their names in a timm ViT; "" for a level that timm lacks
    "embeddings": "",
    "encoder": "",
    "class_embedding": "cls_token",
    "position_embedding": "pos_embed",
    "patch_embedding": "patch_embed",
    "layers": "blocks",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn": "attn",
    "projection": "proj",
    "post_layernorm": "norm",
}

Model = TypeVar("Model", BlipForConditionalGeneration, BlipForImageTextRetrieval)


def word_tokenizer(words: set[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word: lower case, no punctuation, `[CLS]` before a text and `[SEP]` after."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    without_punctuation = normalizers.Replace(Regex(r"[^\w\s\[\]]"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), without_punctuation])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = add_cls_and_sep(vocabulary)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[DEC]", **TOKEN_ROLES)


def add_cls_and_sep(vocabulary: dict[str, int]) -> processors.TemplateProcessing:
    """BERT's post-processor: `[CLS]` before a text and `[SEP]` after it."""
    special_tokens = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special_tokens)


class Stem(nn.Module):
    """The convolutional stem of a small ViT, with the `weight` that `BlipVisionEmbeddings` reads the dtype from."""

    def __init__(self, architecture: vit.Architecture):
        super().__init__()
        self.backbone = vit.stem(architecture)

    @property
    def weight(self) -> Tensor:
        """Any of the weights."""
        return next(self.backbone.parameters())

    def forward(self, pixels: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` to `(B, dim, rows, columns)`."""
        return self.backbone(pixels)


def small_config(architecture: vit.Architecture, vocabulary: int, layers: int = 3, projection: int = 64) -> BlipConfig:
    """The config of a BLIP with a small ViT as its image tower, and text models as wide as that and `layers` deep."""
    shared: dict[str, Any] = {
        "hidden_size": architecture.dim,
        "num_attention_heads": architecture.heads,
        "intermediate_size": 4 * architecture.dim,
        # The default of vision configs is 1e-10, as transformers expects a checkpoint: training from it learns nothing.
        "initializer_range": 0.02,
    }
    vision = {
        "num_hidden_layers": architecture.depth,
        "image_size": architecture.side,
        "patch_size": prod(architecture.strides),
        "layer_norm_eps": 1e-6,  # timm's; transformers' default is 1e-5
        "stem": asdict(architecture),
    }
    text = {
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "pad_token_id": SPECIAL_TOKENS.index("[PAD]"),
        "bos_token_id": SPECIAL_TOKENS.index("[DEC]"),
        "sep_token_id": SPECIAL_TOKENS.index("[SEP]"),
        "eos_token_id": SPECIAL_TOKENS.index("[SEP]"),
    }
    return BlipConfig(vision_config=shared | vision, text_config=shared | text, image_text_hidden_size=projection)


def build(kind: type[Model], config: BlipConfig) -> Model:
    """A model of class `kind` with random weights, and with a convolutional stem if its vision config has one."""
    model = kind(config)
    stem = getattr(config.vision_config, "stem", None)
    if stem:
        patch_embedding = Stem(vit.Architecture.from_dict(stem))
        # The annotation of transformers says `Conv2d`; its code needs a callable with a `weight`.
        model.vision_model.embeddings.patch_embedding = patch_embedding  # type: ignore[assignment]
    return model


def timm_key(key: str) -> str:
    """The state dict key in a timm ViT for `key` in BLIP's image tower."""
    # A plain patch embedding is a convolution here, and a module with a convolution `proj` in timm.
    key = re.sub(r"patch_embedding\.(weight|bias)$", r"patch_embedding.projection.\1", key)
    parts = [TIMM_NAMES.get(part, part) for part in key.split(".")]
    return ".".join(part for part in parts if part)


def start_from_vit(model: BlipForConditionalGeneration | BlipForImageTextRetrieval, weights: dict[str, Tensor]) -> None:
    """Load the weights of a timm ViT into the image tower. Raises `RuntimeError` if they do not match key for key."""
    keys = {timm_key(key): key for key in model.vision_model.state_dict()}
    renamed = {keys.get(key, key): weight for key, weight in weights.items() if not key.startswith("head.")}
    model.vision_model.load_state_dict(renamed)


def save(
    folder: Path,
    captioner: BlipForConditionalGeneration,
    retriever: BlipForImageTextRetrieval,
    tokenizer: PreTrainedTokenizerFast,
    processor: BlipImageProcessorPil,
) -> None:
    """Write both models as one file of weights, with config, tokenizer and image processor, in the hub's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_text(folder / CONFIG, captioner.config.to_json_string())
    # Last, so that a folder with weights is complete.
    save_weights(folder / WEIGHTS, {**captioner.state_dict(), **retriever.state_dict()})


def load(kind: type[Model], source: str) -> Model:
    """A frozen model of class `kind` in eval mode, from a folder of `save` or transformers, or a name on the hub.

    Raises `FileNotFoundError` if `source` is neither a folder nor a name on the hub, `RuntimeError` or `ValueError` if
    the weights do not match key for key or are not finite, and `OSError` as transformers does.
    """
    config = _read_config(source)
    if config is None:
        model = _from_pretrained(kind, source)
    else:
        model = build(kind, config)
        parts_of_other_class = tuple(f"{part}." for part in PARTS if not hasattr(model, part))
        weights = read_weights(Path(source) / WEIGHTS, lambda name: not name.startswith(parts_of_other_class))
        model.load_state_dict(weights)
    check_finite_weights(model)
    return model.eval().requires_grad_(False)


class PartsMissingError(ValueError):
    """A checkpoint lacks the weights of some parts of a model."""


def _from_pretrained(kind: type[Model], source: str) -> Model:
    """A model as transformers loads it. Raises `PartsMissingError` where transformers would fill in random weights."""
    try:
        # Transformers prefers safetensors, and unpickles tensors and plain values only (`weights_only`).
        loaded: Any = kind.from_pretrained(source, output_loading_info=True)
    except (
        UnpicklingError,
        EOFError,
    ) as error:  # torch's own message advises to load the file with `weights_only=False`
        raise ValueError(f"{source}: weights are damaged, or contain executable pickle code") from error
    model, info = loaded
    missing = sorted({key.split(".")[0] for key in info["missing_keys"]})
    if missing:
        raise PartsMissingError(f"holds no weights for {', '.join(missing)}, which {kind.__name__} needs")
    return model


def load_decoder(source: str) -> BlipTextLMHeadModel:
    """The frozen text decoder on its own; raises as `load` does."""
    config = _read_config(source)
    if config is None:
        return load(BlipForConditionalGeneration, source).text_decoder
    text_config: Any = config.text_config
    decoder = BlipTextLMHeadModel(text_config)
    prefix = "text_decoder."
    weights = read_weights(Path(source) / WEIGHTS, lambda name: name.startswith(prefix))
    decoder.load_state_dict({key.removeprefix(prefix): weight for key, weight in weights.items()})
    check_finite_weights(decoder)
    return decoder.eval().requires_grad_(False)


def _read_config(source: str) -> BlipConfig | None:
    """The config in a folder of `save`; None for a folder of transformers or a name on the hub."""
    folder = Path(source)
    if not folder.is_dir():
        if source.count("/") == 1:
            return None  # owner/name on the hub
        raise FileNotFoundError(f"no BLIP checkpoint at {source}; expected a folder with {WEIGHTS} and {CONFIG}")
    try:
        config = BlipConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        message = " ".join(str(error).split())  # field and reason are on several lines
        raise ValueError(f"{folder / CONFIG}: {message}") from error
    parts: list[Any] = [config.vision_config, config.text_config]
    for part in parts:
        if part.num_attention_heads < 1 or part.hidden_size < 1:
            sizes = f"{part.num_attention_heads} attention heads, width {part.hidden_size}"
            raise ValueError(f"{folder / CONFIG}: {sizes}: must be at least 1")
    return None if config.architectures else config  # transformers records the class that it saved; `save` does not


@dataclass(frozen=True)
class Preprocessing:
    """The input of the image tower: square images of `side` pixels, normalized by `mean` and `std` per channel."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_preprocessing(source: str) -> Preprocessing:
    """The preprocessing of a model in a folder or on the hub."""
    processor = BlipImageProcessorPil.from_pretrained(source)
    return Preprocessing(processor.size["height"], tuple(processor.image_mean), tuple(processor.image_std))


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model in a folder or on the hub."""
    return AutoTokenizer.from_pretrained(source)
