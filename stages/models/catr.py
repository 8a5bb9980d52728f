"""CATR v3, a captioner: a ResNet's feature grid, a transformer encoder, and a decoder of BERT's word pieces.

CATR ("CAption TRansformer", github.com/saahiluppal/catr, Apache 2.0) is DETR (Carion et al. 2020, "End-to-end object
detection with transformers") with a text decoder instead of object queries. Sizes, names and the order of operations
follow that repository (configuration.py, models/, predict.py, datasets/coco.py), so its checkpoint loads key for key.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from transformers import BertTokenizer

from stages.core.weights_file import save_weights
from stages.models.catr_transformer import CatrCache, Decoder, Embeddings, Encoder, sine_positions
from stages.models.shared_keys import RowsByImage
from stages.models.weights import check_finite_weights, check_weights, read_weights

LONGER_SIDE = 299  # of an image after `preprocess`, in pixels
PATCH = 16  # pixels per grid cell: the stride of a ResNet whose last stage is dilated
WEIGHTS = "model.safetensors"  # in a folder of `convert_file`
HEAD_WIDTH = 32  # features per attention head


@dataclass(frozen=True)
class CatrConfig:
    """Sizes, by default those of the published v3 (configuration.py).

    Raises `ValueError` if `hidden` cannot be divided among the heads, or into the four parts of sine positions.
    """

    hidden: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    inner: int = 512  # width of the output layers between `hidden` and `vocabulary`
    vocabulary: int = 30522  # word pieces of bert-base-uncased
    positions: int = 128  # maximum length of a text in tokens, including the start token
    blocks: tuple[int, ...] = (3, 4, 23, 3)  # per stage of ResNet-101
    dilation: bool = True  # the last stage dilates its kernels instead of halving the grid: cells of 16 pixels, not 32
    layer_norm_eps: float = 1e-12  # of the embeddings' norm only; all others use torch's default of 1e-5
    pad: int = 0
    start: int = 101  # [CLS]
    end: int = 102  # [SEP]

    def __post_init__(self):
        # Sine positions: rows and columns, each with sines and cosines.
        if self.heads < 1 or self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden {self.hidden} is not a multiple of 4 and of its {self.heads} heads")


class ResNetGrid(nn.Module):
    """A ResNet without pooling and classifier: `(B, 3, H, W)` to `(B, 2048, ceil(H / 16), ceil(W / 16))`.

    Its batch norm is frozen, with four buffers and no batch count. The epsilon of the published code is torchvision's
    default, 1e-5.
    """

    def __init__(self, config: CatrConfig):
        super().__init__()
        resnet = ResNet(
            Bottleneck,
            list(config.blocks),
            replace_stride_with_dilation=[False, False, config.dilation],
            norm_layer=FrozenBatchNorm2d,
        )
        stages = [(name, stage) for name, stage in resnet.named_children() if name not in ("avgpool", "fc")]
        self.body = nn.Sequential(OrderedDict(stages))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)


class Transformer(nn.Module):
    """The encoder of an image and the decoder of a text; a module of its own for the names of the checkpoint."""

    def __init__(self, config: CatrConfig):
        super().__init__()
        self.encoder = Encoder(config.encoder_layers, config.hidden, config.heads, config.feedforward)
        self.embeddings = Embeddings(
            config.vocabulary, config.positions, config.hidden, config.pad, config.layer_norm_eps
        )
        self.decoder = Decoder(config.decoder_layers, config.hidden, config.heads, config.feedforward)


class Output(nn.Module):
    """The output layers: logits `(B, vocabulary)` from `(B, hidden)`."""

    def __init__(self, config: CatrConfig):
        super().__init__()
        widths = (config.hidden, config.inner, config.inner, config.vocabulary)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Catr(nn.Module):
    """The captioner; its state dict has the keys of the published checkpoint.

    `logits` reads whole texts, `read` continues them token by token. Everywhere, `mask` `(B, H, W)` bool is True on
    padding, and None means images without padding.
    """

    def __init__(self, config: CatrConfig):
        super().__init__()
        self.config = config
        self.start = config.start
        self.end = config.end
        self.pad = config.pad
        self.backbone = nn.Sequential(ResNetGrid(config))
        self.input_proj = nn.Conv2d(512 * Bottleneck.expansion, config.hidden, kernel_size=1)
        self.transformer = Transformer(config)
        self.mlp = Output(config)
        for weight in self.transformer.parameters():  # as published; all other weights start as torch's defaults
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def memory(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoder's output `(B, rows, columns, hidden)` for normalized float `pixels` `(B, 3, H, W)`.

        The output for a padded image is only close to that for the same image alone, for two reasons. Convolutions turn
        padding into values other than the zeros beyond an image's edge, which leak into the image. And a cell counts as
        valid by the single pixel nearest to its corner, which may add a row or column of cells if H or W is not a
        multiple of 16. `encode`, which starts from the features, has no such difference.
        """
        return self.encode(self.features(pixels), mask)

    def features(self, pixels: Tensor) -> Tensor:
        """The encoder's input `(B, rows, columns, hidden)` for `pixels` `(B, 3, H, W)`."""
        return self.input_proj(self.backbone(pixels)).permute(0, 2, 3, 1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoder's output `(B, rows, columns, hidden)` for `features` of the same shape."""
        positions, valid = self._cell_positions(features, mask)
        return self.transformer.encoder(features.flatten(1, 2), positions, valid).view_as(features)

    def new_cache(self, memory: Tensor, mask: Tensor | None = None) -> CatrCache:
        """A cache with the keys and values of each image in `memory` `(images, rows, columns, hidden)`, and no text."""
        positions, valid = self._cell_positions(memory, mask)
        return self.transformer.decoder.new_cache(memory.flatten(1, 2), positions, valid)

    def read(self, tokens: Tensor, cache: CatrCache, image_of_row: Tensor) -> Tensor:
        """Logits `(rows, vocabulary)` after the last of `tokens` `(rows, n)`, which are added to `cache`.

        `image_of_row` `(rows,)` holds the image index of each row. Rows are sorted by it; an image may have any number
        of rows. Raises `ValueError` for unsorted rows, another number of rows than in the cache, or more tokens than
        `positions`.
        """
        if len(image_of_row) != len(tokens) or cache.rows not in (None, len(tokens)):
            raise ValueError(
                f"{len(tokens)} rows of tokens, {len(image_of_row)} images, {cache.rows} rows in the cache"
            )
        rows = RowsByImage.pack(image_of_row, cache.images)
        embedded, positions = self.transformer.embeddings(tokens, cache.length)
        return self.mlp(self.transformer.decoder(embedded, positions, cache, rows)[:, -1])

    def logits(self, tokens: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(B, vocabulary)` after whole texts `tokens` `(B, n)`, one text per image in `memory`."""
        return self.read(tokens, self.new_cache(memory, mask), torch.arange(len(tokens), device=tokens.device))

    def cross_attention(self, tokens: Tensor, memory: Tensor, layer: int = -1, mask: Tensor | None = None) -> Tensor:
        """The weights `(B, heads, n, rows * columns)` of a decoder layer over the image; each row sums to 1.

        `tokens` `(B, n)` are whole texts, one per image. Row i of the weights belongs to the prediction of the token
        after `tokens[:, i]`. Raises `IndexError` if the model has no such layer.
        """
        index = range(self.config.decoder_layers)[layer]
        rows = RowsByImage.pack(torch.arange(len(tokens), device=tokens.device), len(memory))
        embedded, positions = self.transformer.embeddings(tokens, 0)
        cache = self.new_cache(memory, mask)
        return self.transformer.decoder.cross_attention(embedded, positions, cache, rows, index)

    def _cell_positions(self, grid: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """For `grid` `(B, rows, columns, hidden)`: sine positions `(B or 1, cells, hidden)`, and the attention mask.

        The attention mask `(B, 1, 1, cells)` is True on valid cells, and None if `mask` is None.
        """
        size = grid.shape[1:3]
        if mask is None:
            valid = torch.ones(1, *size, dtype=torch.bool, device=grid.device)
            attention_mask = None
        else:
            valid = F.interpolate((~mask)[:, None].float(), size=size)[:, 0].bool()  # nearest pixel, as published
            attention_mask = valid.flatten(1)[:, None, None]
        # float64 for a float64 grid: close choices are repeated in double precision, where the sines of one device must
        # not decide. At least float32, as grids are half precision under autocast.
        dtype = torch.promote_types(grid.dtype, torch.float32)
        return sine_positions(valid, self.config.hidden, dtype).flatten(1, 2), attention_mask


def resized_shape(height: int, width: int) -> tuple[int, int]:
    """Height and width after `preprocess`: a longer side of 299 pixels.

    Sides are truncated to whole pixels, so that the longer one may be 298 (datasets/coco.py, `under_max`). Raises
    `ValueError` for an image so narrow that no pixel is left.
    """
    scale = LONGER_SIDE / max(height, width)
    shape = (int(height * scale), int(width * scale))
    if not all(shape):
        raise ValueError(f"a {width}x{height} image has no pixels left at {LONGER_SIDE} on its longer side")
    return shape


def preprocess(image: Image.Image) -> Tensor:
    """An image as CATR was validated on: float `(3, H, W)` in -1..1, of `resized_shape`.

    Raises `ValueError` as `resized_shape` does.
    """
    height, width = resized_shape(image.height, image.width)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)  # Pillow's default since 7.0
    return (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def load(path: Path) -> Catr:
    """The frozen captioner in eval mode, from a file with a state dict, at the top level or under `model`.

    Sizes come from the shapes of the weights; heads are 32 wide and the last ResNet stage is dilated, which shapes do
    not tell. Raises `FileNotFoundError` for a missing file, and `ValueError` for one that holds other things than
    tensors, keys that do not match, or weights that are not finite.
    """
    state_dict = read_weights(path)
    try:
        config = _derive_config(state_dict)
        with torch.device("meta"):
            model = Catr(config)
        check_weights(state_dict, model.state_dict())
        model.load_state_dict({name: weight.float() for name, weight in state_dict.items()}, assign=True)
        check_finite_weights(model)
    except ValueError as error:
        raise ValueError(f"{path} does not fit CATR: {error}") from error
    return model.eval().requires_grad_(False)


def convert_file(source: Path, vocabulary: Path, folder: Path) -> None:
    """Write a folder with the weights of a checkpoint and BERT's tokenizer from its `vocab.txt`.

    Raises as `load` does, and `ValueError` for a vocabulary of another size.
    """
    model = load(source)
    tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=True)
    if len(tokenizer) != model.config.vocabulary:
        raise ValueError(f"{vocabulary} has {len(tokenizer)} word pieces, {source} embeds {model.config.vocabulary}")
    tokenizer.save_pretrained(folder)
    save_weights(folder / WEIGHTS, model.state_dict())  # last, so that a folder with weights is complete


def load_tokenizer(folder: Path) -> BertTokenizer:
    """The tokenizer in a folder of `convert_file`."""
    return BertTokenizer.from_pretrained(folder)


def _derive_config(state_dict: dict[str, Tensor]) -> CatrConfig:
    """The sizes of a state dict. For a missing weight it is the published size: `load` then names the weight.

    Raises `ValueError` if `hidden` cannot be divided among heads of the published width.
    """
    published = CatrConfig()

    def first_axis(name: str, default: int) -> int:
        return state_dict[name].shape[0] if name in state_dict and state_dict[name].dim() else default

    def count(prefix: str, default: int) -> int:
        matches = [re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state_dict]
        return len({match[1] for match in matches if match}) or default

    hidden = first_axis("input_proj.weight", published.hidden)
    if hidden % HEAD_WIDTH:
        raise ValueError(f"hidden {hidden} is not a multiple of {HEAD_WIDTH}, the width of a head")
    blocks = [
        count(f"backbone.0.body.layer{stage}", default) for stage, default in enumerate(published.blocks, start=1)
    ]
    return CatrConfig(
        hidden=hidden,
        heads=hidden // HEAD_WIDTH,
        encoder_layers=count("transformer.encoder.layers", published.encoder_layers),
        decoder_layers=count("transformer.decoder.layers", published.decoder_layers),
        feedforward=first_axis("transformer.encoder.layers.0.linear1.weight", published.feedforward),
        inner=first_axis("mlp.layers.0.weight", published.inner),
        vocabulary=first_axis("transformer.embeddings.word_embeddings.weight", published.vocabulary),
        positions=first_axis("transformer.embeddings.position_embeddings.weight", published.positions),
        blocks=tuple(blocks),
    )
