"""CATR v3, a captioner: a ResNet's grid, a transformer encoder over it, and a decoder of BERT's word pieces.

CATR ("CAption TRansformer", github.com/saahiluppal/catr, Apache 2.0) is DETR (Carion et al. 2020, "End-to-end object
detection with transformers") with a text decoder in the object queries' place. Sizes, names and the order of steps are
that repository's (configuration.py, models/, predict.py, datasets/coco.py), so that its checkpoint loads key for key.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from transformers import BertTokenizerFast

from stages.core.atomic import atomic_write
from stages.models.catr_transformer import CatrCache, Decoder, Embeddings, Encoder, SharedImages, sine_positions
from stages.models.weights import read_weights, summarize_names

LONGER_SIDE = 299  # of an image, in pixels
PATCH = 16  # pixels behind a cell, of the dilated v3
WEIGHTS = "model.safetensors"  # in a folder of `convert_file`
HEAD = 32  # width of each attention head, in features


@dataclass(frozen=True)
class CatrConfig:
    """Sizes of the published v3 (configuration.py). Raises `ValueError` where heads do not share `hidden` evenly."""

    hidden: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    inner: int = 512  # width of the output layers between `hidden` and `vocabulary`
    vocabulary: int = 30522  # word pieces of bert-base-uncased
    positions: int = 128  # the most tokens of a text, start included
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)  # ResNet-101's, stage by stage
    dilation: bool = True  # the last stage spreads its kernels and keeps its stride: a cell is 16 pixels, not 32
    layer_norm_eps: float = 1e-12  # of the embeddings' norm alone; all others have torch's 1e-5
    pad: int = 0
    start: int = 101  # [CLS]
    end: int = 102  # [SEP]

    def __post_init__(self):
        if self.heads < 1 or self.hidden % self.heads or self.hidden % 4:  # two halves, each of sines and cosines
            raise ValueError(f"hidden {self.hidden} is not a multiple of 4 and of its {self.heads} heads")


class ResNetGrid(nn.Module):
    """A ResNet up to its last stage: `(B, 2048, rows, columns)` of `(B, 3, H, W)`, a cell for every 16 pixels begun.

    Its batch norm is frozen: four buffers, no count of batches. Its epsilon is 1e-5 in the published code and
    torchvision's alike.
    """

    def __init__(self, config: CatrConfig):
        super().__init__()
        dilated = [False, False, config.dilation]
        resnet = ResNet(
            Bottleneck, list(config.blocks), replace_stride_with_dilation=dilated, norm_layer=FrozenBatchNorm2d
        )
        stages = [(name, stage) for name, stage in resnet.named_children() if name not in ("avgpool", "fc")]
        self.body = nn.Sequential(OrderedDict(stages))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)


class Output(nn.Module):
    """Logits `(B, vocabulary)` of `(B, hidden)`."""

    def __init__(self, config: CatrConfig):
        super().__init__()
        widths = (config.hidden, config.inner, config.inner, config.vocabulary)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def _valid(mask: Tensor | None, grid: Tensor) -> Tensor:
    """Cells of `grid` `(B, rows, columns, hidden)` that are no padding, `(B or 1, rows, columns)`."""
    if mask is None:
        return torch.ones(1, *grid.shape[1:3], dtype=torch.bool, device=grid.device)
    return F.interpolate((~mask)[:, None].float(), size=grid.shape[1:3])[:, 0].bool()  # nearest, as published


def _over_keys(mask: Tensor | None, valid: Tensor) -> Tensor | None:
    """`valid` as attention takes it, `(B, 1, 1, cells)`; None where nothing is masked."""
    return None if mask is None else valid.flatten(1)[:, None, None]


class Catr(nn.Module):
    """The captioner; its state dict has the published checkpoint's keys.

    A text is read in one go (`logits`) or token by token (`read`). Everywhere `mask` `(B, H, W)` bool is True on
    padding, and None stands for images without any.
    """

    def __init__(self, config: CatrConfig):
        super().__init__()
        self.config = config
        self.start, self.end, self.pad = config.start, config.end, config.pad
        width = (config.hidden, config.heads, config.feedforward)
        self.backbone = nn.Sequential(ResNetGrid(config))
        self.input_proj = nn.Conv2d(512 * Bottleneck.expansion, config.hidden, kernel_size=1)
        self.transformer = nn.ModuleDict(
            {
                "encoder": Encoder(config.encoder_layers, *width),
                "embeddings": Embeddings(
                    config.vocabulary, config.positions, config.hidden, config.pad, config.layer_norm_eps
                ),
                "decoder": Decoder(config.decoder_layers, *width),
            }
        )
        self.mlp = Output(config)
        for weight in self.transformer.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def memory(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoder's output `(B, rows, columns, hidden)` of normalized float `pixels` `(B, 3, H, W)`.

        A padded image only comes near to the same image alone: what the convolutions make of padding is not the zero
        that they see beyond an image's edge, and flows back over it; and a cell counts as valid by the one pixel
        nearest to its corner, which may add a row or column of cells where H or W is no multiple of 16. `encode`, from
        the same features on, has no such difference.
        """
        return self.encode(self.features(pixels), mask)

    def features(self, pixels: Tensor) -> Tensor:
        """What the encoder is given, `(B, rows, columns, hidden)`, of `pixels` `(B, 3, H, W)`."""
        return self.input_proj(self.backbone(pixels)).permute(0, 2, 3, 1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoder's output `(B, rows, columns, hidden)` of `features` of the same shape."""
        positions, valid = self._positions(features, mask)
        return self.transformer["encoder"](features.flatten(1, 2), positions, valid).view_as(features)

    def new_cache(self, memory: Tensor, mask: Tensor | None = None) -> CatrCache:
        """Keys and values of each image in `memory` `(images, rows, columns, hidden)`; nothing read yet."""
        positions, valid = self._positions(memory, mask)
        cells = memory.flatten(1, 2)
        return CatrCache([layer.new_cache(cells, positions) for layer in self.transformer["decoder"].layers], valid)

    def read(self, tokens: Tensor, cache: CatrCache, images_of: Tensor) -> Tensor:
        """Logits `(rows, vocabulary)` behind the last of `tokens` `(rows, n)`, which go into `cache`.

        `images_of` `(rows,)` numbers each row's image; rows are sorted by it, and an image may have any number of
        them. Raises `ValueError` for unsorted rows, another number of rows than the cache's, or more tokens than
        `positions`.
        """
        if len(images_of) != len(tokens) or cache.rows not in (None, len(tokens)):
            raise ValueError(f"{len(tokens)} rows of tokens, {len(images_of)} images, {cache.rows} rows in the cache")
        shared = SharedImages.of(images_of, cache.images)
        embedded, places = self.transformer["embeddings"](tokens, cache.length)
        return self.mlp(self.transformer["decoder"](embedded, places, cache, shared)[:, -1])

    def logits(self, tokens: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(B, vocabulary)` behind whole texts `tokens` `(B, n)`, each of its own image in `memory`."""
        return self.read(tokens, self.new_cache(memory, mask), torch.arange(len(tokens), device=tokens.device))

    def cross_attention(self, tokens: Tensor, memory: Tensor, layer: int = -1, mask: Tensor | None = None) -> Tensor:
        """Weights `(B, heads, n, rows * columns)` of a decoder layer over the image, each row summing to 1.

        `tokens` `(B, n)` are whole texts, each of its own image; the weights in row i are those with which the token
        behind `tokens[:, i]` is chosen. Raises `IndexError` for a layer that the model has not.
        """
        number = range(self.config.decoder_layers)[layer]
        shared = SharedImages.of(torch.arange(len(tokens), device=tokens.device), len(memory))
        embedded, places = self.transformer["embeddings"](tokens, 0)
        cache = self.new_cache(memory, mask)
        return self.transformer["decoder"].image_weights(embedded, places, cache, shared, number)

    def _positions(self, grid: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Of a grid's cells: where they lie `(B or 1, cells, hidden)`, and which may be looked at."""
        valid = _valid(mask, grid)
        # In the grid's own precision: a choice made again in double precision must not hang on a device's sine.
        precision = torch.promote_types(grid.dtype, torch.float32)  # grids of autocast are half floats
        return sine_positions(valid, self.config.hidden, precision).flatten(1, 2), _over_keys(mask, valid)


def preprocess(image: Image.Image) -> Tensor:
    """An image as CATR was validated on: float `(3, H, W)` in -1..1, the longer side 299 pixels.

    Sides are cut down to whole pixels, by which the longer one may lose one too (datasets/coco.py, `under_max`).
    Raises `ValueError` for an image so narrow that nothing is left of it.
    """
    scale = LONGER_SIDE / max(image.size)
    width, height = (int(side * scale) for side in image.size)
    if not (width and height):
        raise ValueError(f"a {image.width}x{image.height} image has no pixels left at {LONGER_SIDE} on its longer side")
    small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)  # Pillow's default since 7.0
    return (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def load(path: Path) -> Catr:
    """The frozen captioner, in eval mode, from a checkpoint: a state dict, or a dict with one under `model`.

    Sizes are taken from the weights' shapes, heads are 32 wide, the last stage is dilated. Raises `FileNotFoundError`
    for a missing file, `ValueError` for one that holds other things than tensors, or keys that do not fit.
    """
    state = read_weights(path)
    try:
        config = _sizes(state)
    except ValueError as fault:
        raise ValueError(f"{path} does not fit CATR: {fault}") from fault
    with torch.device("meta"):
        model = Catr(config)
    faults = "; ".join(_faults(state, model.state_dict()))
    if faults:
        raise ValueError(f"{path} does not fit CATR: {faults}")
    model.load_state_dict({name: weight.float() for name, weight in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def convert_file(source: Path, vocabulary: Path, folder: Path) -> None:
    """Write a checkpoint's weights, and BERT's tokenizer from its `vocab.txt`, into a folder.

    Raises as `load` does, and `ValueError` for a vocabulary of another size.
    """
    model, tokenizer = load(source), BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    if len(tokenizer) != model.config.vocabulary:
        raise ValueError(f"{vocabulary} has {len(tokenizer)} word pieces, {source} embeds {model.config.vocabulary}")
    tokenizer.save_pretrained(folder)
    with atomic_write(folder / WEIGHTS) as beside:  # last: a folder with weights is whole
        save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, beside)


def load_tokenizer(folder: Path) -> BertTokenizerFast:
    """The tokenizer in a folder of `convert_file`."""
    return BertTokenizerFast.from_pretrained(folder)


def _sizes(state: dict[str, Tensor]) -> CatrConfig:
    """What the shapes tell; the published size where a weight is missing, which `_faults` then names.

    Raises `ValueError` where heads would not share `hidden`.
    """
    published = CatrConfig()

    def rows(name: str, otherwise: int) -> int:
        return state[name].shape[0] if name in state and state[name].dim() else otherwise

    def count(prefix: str, otherwise: int) -> int:
        numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({found[1] for found in map(numbered.match, state) if found}) or otherwise

    hidden = rows("input_proj.weight", published.hidden)
    if hidden % HEAD:
        raise ValueError(f"hidden {hidden} is no multiple of {HEAD}, the width of a head")
    stages = enumerate(published.blocks, start=1)
    return CatrConfig(
        hidden=hidden,
        heads=hidden // HEAD,
        encoder_layers=count("transformer.encoder.layers", published.encoder_layers),
        decoder_layers=count("transformer.decoder.layers", published.decoder_layers),
        feedforward=rows("transformer.encoder.layers.0.linear1.weight", published.feedforward),
        inner=rows("mlp.layers.0.weight", published.inner),
        vocabulary=rows("transformer.embeddings.word_embeddings.weight", published.vocabulary),
        positions=rows("transformer.embeddings.position_embeddings.weight", published.positions),
        blocks=tuple(count(f"backbone.0.body.layer{stage}", blocks) for stage, blocks in stages),
    )


def _faults(state: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[str]:
    """What does not fit, each kind with how many keys and the first of them."""
    shared = sorted(state.keys() & expected.keys())
    misshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    kinds = {
        "missing": sorted(expected.keys() - state.keys()),
        "left over": sorted(state.keys() - expected.keys()),
        "of another shape": misshaped,
    }
    for kind, names in kinds.items():
        if names:
            yield f"{len(names)} {kind}: {summarize_names(names)}"
