"""BLIP (Li et al., 2022) in transformers' own classes, its tokenizer, and the folder that both are kept in.

One set of weights serves `BlipForConditionalGeneration` and `BlipForImageTextRetrieval`: they share the image tower,
and each takes the keys of its own parts.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
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

from stages.core.atomic import atomic_write, write_text
from stages.models import vit

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "[ENC]")  # BERT's, then BLIP's two: start to decode, to match

PARTS = ("vision_model", "text_decoder", "text_encoder", "vision_proj", "text_proj", "itm_head")  # of both classes

Model = TypeVar("Model", BlipForConditionalGeneration, BlipForImageTextRetrieval)


def word_tokenizer(words: set[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer of whole words: lower case, without punctuation; `[CLS]` before a text, `[SEP]` behind it."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    lower, bare = normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s\[\]]"), " ")
    tokenizer.normalizer = normalizers.Sequence([lower, bare])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[DEC]", **names)


class Stem(nn.Module):
    """A small ViT's stem as `BlipVisionEmbeddings` wants its patch embedding: callable, with a weight to ask for."""

    def __init__(self, architecture: vit.Architecture):
        super().__init__()
        self.backbone = vit.stem(architecture)

    @property
    def weight(self) -> Tensor:
        """Any weight: BLIP reads its dtype."""
        return next(self.backbone.parameters())

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, dim, rows, columns)` of `(B, 3, H, W)`."""
        return self.backbone(pixels)


def small_config(architecture: vit.Architecture, vocabulary: int, layers: int = 3, projection: int = 64) -> BlipConfig:
    """BLIP shrunk to the size of a small ViT, with a text side as wide and `layers` deep.

    Vision configs' `initializer_range` is 1e-10 by default, as they expect a checkpoint: nothing would be learned.
    """
    shared = {"hidden_size": architecture.dim, "num_attention_heads": architecture.heads}
    shared |= {"intermediate_size": 4 * architecture.dim, "initializer_range": 0.02}
    image = {
        "num_hidden_layers": architecture.depth,
        "image_size": architecture.side,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,  # timm's
        "stem": asdict(architecture),
    }
    text = {
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "pad_token_id": SPECIAL.index("[PAD]"),
        "bos_token_id": SPECIAL.index("[DEC]"),
        "sep_token_id": SPECIAL.index("[SEP]"),
        "eos_token_id": SPECIAL.index("[SEP]"),
    }
    return BlipConfig(vision_config=shared | image, text_config=shared | text, image_text_hidden_size=projection)


def build(kind: type[Model], config: BlipConfig) -> Model:
    """A model of either class with random weights; with a stem where the config of its image tower asks for one."""
    model = kind(config)
    asked = getattr(config.vision_config, "stem", None)
    if asked:
        model.vision_model.embeddings.patch_embedding = Stem(vit.Architecture.from_dict(asked))
    return model


def start_from_vit(model: BlipForConditionalGeneration | BlipForImageTextRetrieval, weights: dict[str, Tensor]) -> None:
    """Give the image tower the weights of a timm ViT of the same shape; raises `RuntimeError` where they do not fit."""
    names = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed": "embeddings.patch_embedding",
        "blocks": "encoder.layers",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn": "self_attn",
        "proj": "projection",
        "norm": "post_layernorm",
    }
    kept = {name: weight for name, weight in weights.items() if not name.startswith("head.")}
    renamed = {".".join(names.get(part, part) for part in name.split(".")): weight for name, weight in kept.items()}
    model.vision_model.load_state_dict(renamed)


def save(
    folder: Path,
    captioner: BlipForConditionalGeneration,
    retriever: BlipForImageTextRetrieval,
    tokenizer: PreTrainedTokenizerFast,
    processor: BlipImageProcessorPil,
) -> None:
    """Write both models' weights as one file, with config, tokenizer and image processor, as the hub lays them out."""
    weights = {**captioner.state_dict(), **retriever.state_dict()}
    weights = {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}  # none shared
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_text(folder / CONFIG, captioner.config.to_json_string())
    with atomic_write(folder / WEIGHTS) as beside:
        save_file(weights, beside)


def load(kind: type[Model], source: str) -> Model:
    """A frozen model of either class, in eval mode, from a folder of `save`, or as transformers finds it by name.

    Raises `FileNotFoundError` for what is neither a folder nor a name on the hub, `RuntimeError` or `ValueError` for
    weights that do not fit key for key, `OSError` as transformers does.
    """
    config = _own_config(source)
    if config is None:
        return _whole(kind, source).eval().requires_grad_(False)
    model = build(kind, config)
    others = tuple(part + "." for part in PARTS if not hasattr(model, part))
    weights = load_file(Path(source) / WEIGHTS)
    model.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith(others)})
    return model.eval().requires_grad_(False)


class PartsMissingError(ValueError):
    """A checkpoint without some parts of a model."""


def _whole(kind: type[Model], source: str) -> Model:
    """A model as transformers loads it, unless it would fill in parts that the checkpoint lacks with random weights."""
    model, told = kind.from_pretrained(source, output_loading_info=True)
    missing = sorted({name.split(".")[0] for name in told["missing_keys"]})
    if missing:
        raise PartsMissingError(f"holds no weights for {', '.join(missing)}, which {kind.__name__} needs")
    return model


def load_decoder(source: str) -> BlipTextLMHeadModel:
    """The frozen text decoder alone; raises as `load` does."""
    config = _own_config(source)
    if config is None:
        return load(BlipForConditionalGeneration, source).text_decoder
    decoder, own = BlipTextLMHeadModel(config.text_config), "text_decoder."
    weights = {name: weight for name, weight in load_file(Path(source) / WEIGHTS).items() if name.startswith(own)}
    decoder.load_state_dict({name.removeprefix(own): weight for name, weight in weights.items()})
    return decoder.eval().requires_grad_(False)


def _own_config(source: str) -> BlipConfig | None:
    """The config in a folder of `save`; None for what transformers has saved, and loads by itself."""
    folder = Path(source)
    if not folder.is_dir():
        if source.count("/") == 1:
            return None  # owner/name on the hub
        raise FileNotFoundError(f"no BLIP checkpoint at {source}; expected a folder with {WEIGHTS} and {CONFIG}")
    config = BlipConfig.from_pretrained(folder)
    return None if config.architectures else config  # transformers says which class it saved


@dataclass(frozen=True)
class Preprocessing:
    """What the image tower wants: squares of `side` pixels, normalized by `mean` and `std`."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_preprocessing(source: str) -> Preprocessing:
    """The image side of a folder of `save`, or of a model on the hub."""
    processor = BlipImageProcessorPil.from_pretrained(source)
    return Preprocessing(processor.size["height"], tuple(processor.image_mean), tuple(processor.image_std))


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder of `save`, or of a model on the hub."""
    return AutoTokenizer.from_pretrained(source)
