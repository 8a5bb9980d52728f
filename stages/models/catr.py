"""CATR v3, a captioner: a ResNet's feature grid, a transformer encoder, and a decoder of BERT's word pieces.

CATR ("CAption TRansformer", github.com/saahiluppal/catr, Apache 2.0) is DETR (Carion et al. 2020, "End-to-end object
detection with transformers") with a text decoder instead of object queries. Sizes, names and the order of operations
follow that repository (configuration.py, models/, predict.py, datasets/coco.py), so its checkpoint loads key for key.
A checkpoint of `save` has other sizes, which its metadata tell (`CatrConfig`).
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from stages.core.weights_file import save_weights
from stages.models.catr_transformer import CatrCache, Decoder, Embeddings, Encoder, sine_positions
from stages.models.shared_keys import RowsByImage
from stages.models.weights import (
    LARGEST_SIZE,
    Size,
    check_finite_weights,
    check_weights,
    parse_metadata,
    read_metadata,
    read_weights,
)

PATCH = 16  # pixels per grid cell: the stride of a ResNet whose last stage is dilated
WEIGHTS = "model.safetensors"  # in a folder of `convert_file` or `save`
HEAD_WIDTH = 32  # features per attention head

TokenId = Annotated[int, Field(ge=0, le=LARGEST_SIZE)]


@dataclass(frozen=True)
class CatrConfig:
    """Sizes, by default those of the published v3 (configuration.py).

    Raises `ValueError` if `hidden` cannot be divided among the heads, or into the four parts of sine positions, or if
    a special token is not in the vocabulary.
    """

    hidden: Size = 256
    heads: Size = 8
    encoder_layers: Size = 6
    decoder_layers: Size = 6
    feedforward: Size = 2048
    inner: Size = 512  # width of the output layers between `hidden` and `vocabulary`
    vocabulary: Size = 30522  # word pieces of bert-base-uncased
    positions: Size = 128  # maximum length of a text in tokens, including the start token
    blocks: tuple[Size, Size, Size, Size] = (3, 4, 23, 3)  # per stage of ResNet-101
    expansion: Size = 4  # of a block's channels; a net has expansion / 4 times the published width
    dilation: bool = True  # the last stage dilates its kernels instead of halving the grid: cells of 16 pixels, not 32
    longer_side: Size = 299  # of an image after `preprocess`, in pixels
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-12  # of the embeddings' norm; others have torch's default
    pad: TokenId = 0
    start: TokenId = 101  # [CLS]
    end: TokenId = 102  # [SEP]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self):
        # Sine positions: rows and columns, each with sines and cosines.
        if self.heads < 1 or self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden {self.hidden} is not a multiple of 4 and of its {self.heads} heads")
        if max(self.pad, self.start, self.end) >= self.vocabulary:
            raise ValueError(f"pad, start and end must be tokens of the vocabulary of {self.vocabulary}")


class ResNetGrid(nn.Module):
    """A ResNet without pooling and classifier: `(B, 3, H, W)` to `(B, 512 * expansion, ceil(H / 16), ceil(W / 16))`.

    `norm_layer` gives the batch norm of a number of channels. All kinds have an epsilon of 1e-5: torchvision's default,
    which the published code has, torch's and timm's.
    """

    def __init__(self, config: CatrConfig, norm_layer: Callable[[int], nn.Module]):
        super().__init__()
        block = type("Bottleneck", (Bottleneck,), {"expansion": config.expansion})
        resnet = ResNet(
            block,
            list(config.blocks),
            # Inner channels of the four stages are 64, 128, 256 and 512, times this over 64.
            width_per_group=16 * config.expansion,
            replace_stride_with_dilation=[False, False, config.dilation],
            norm_layer=norm_layer,
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

    `logits` reads whole texts, `read` continues them token by token, `text_logits` predicts all tokens of whole texts.
    Everywhere, `mask` `(B, H, W)` bool is True on padding, and None means images without padding.

    The ResNet's batch norm is frozen, with four buffers and no batch count. `norm_layer` replaces it for training by
    one with the same weights and statistics under the same names; `save` leaves out its batch count.
    """

    def __init__(self, config: CatrConfig, norm_layer: Callable[[int], nn.Module] = FrozenBatchNorm2d):
        super().__init__()
        self.config = config
        self.start = config.start
        self.end = config.end
        self.pad = config.pad
        self.backbone = nn.Sequential(ResNetGrid(config, norm_layer))
        self.input_proj = nn.Conv2d(512 * config.expansion, config.hidden, kernel_size=1)
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
        return self.mlp(self._decode(tokens, cache, image_of_row)[:, -1])

    def logits(self, tokens: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(B, vocabulary)` after whole texts `tokens` `(B, n)`, one text per image in `memory`."""
        return self.read(tokens, self.new_cache(memory, mask), torch.arange(len(tokens), device=tokens.device))

    def text_logits(self, tokens: Tensor, memory: Tensor, image_of_row: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(rows, n, vocabulary)` after each of `tokens` `(rows, n)`, for training on whole texts.

        Those at position i depend on the tokens up to i only, so padding after a text changes none of its logits.
        `image_of_row` is that of `read`, which raises the same errors.
        """
        return self.mlp(self._decode(tokens, self.new_cache(memory, mask), image_of_row))

    def _decode(self, tokens: Tensor, cache: CatrCache, image_of_row: Tensor) -> Tensor:
        """The decoder's output `(rows, n, hidden)` for `tokens` `(rows, n)`, which are added to `cache`."""
        if len(image_of_row) != len(tokens) or cache.rows not in (None, len(tokens)):
            raise ValueError(
                f"{len(tokens)} rows of tokens, {len(image_of_row)} images, {cache.rows} rows in the cache"
            )
        rows = RowsByImage.pack(image_of_row, cache.images)
        embedded, positions = self.transformer.embeddings(tokens, cache.length)
        return self.transformer.decoder(embedded, positions, cache, rows)

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


def resized_shape(height: int, width: int, longer_side: int) -> tuple[int, int]:
    """Height and width after `preprocess`.

    Sides are truncated to whole pixels, so that the longer one may be `longer_side - 1` (datasets/coco.py,
    `under_max`). Raises `ValueError` for an image so narrow that no pixel is left.
    """
    scale = longer_side / max(height, width)
    shape = (int(height * scale), int(width * scale))
    if not all(shape):
        raise ValueError(f"a {width}x{height} image has no pixels left at {longer_side} on its longer side")
    return shape


def resize(image: Image.Image, longer_side: int) -> Tensor:
    """An image in the size of `resized_shape`, `(3, H, W)` uint8; raises `ValueError` as that does."""
    height, width = resized_shape(image.height, image.width, longer_side)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)  # Pillow's default since 7.0
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def normalize(pixels: Tensor) -> Tensor:
    """Float32 pixels in -1..1 from those in 0..255."""
    return (pixels.float() / 255 - 0.5) / 0.5


def preprocess(image: Image.Image, longer_side: int) -> Tensor:
    """An image as CATR was validated on: float `(3, H, W)` in -1..1, of `resized_shape`.

    Raises `ValueError` as `resized_shape` does.
    """
    return normalize(resize(image, longer_side))


def save(folder: Path, model: Catr, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the weights, with the config as JSON in the metadata of the file, and the tokenizer."""
    tokenizer.save_pretrained(folder)
    # A frozen batch norm has no count of batches: a trained one's is not needed to compute.
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith(".num_batches_tracked")}
    # Last, so that a folder with weights is complete.
    save_weights(folder / WEIGHTS, weights, config=asdict(model.config))


def load(path: Path) -> Catr:
    """The frozen captioner in eval mode, from a file of `save`, or one with a state dict at the top or under `model`.

    Without the metadata of `save`, sizes come from the shapes of the weights, and what shapes do not tell is as
    published: heads are 32 wide, the last ResNet stage is dilated, and images have 299 pixels on their longer side.

    Raises `FileNotFoundError` for a missing file, and `ValueError` for one that holds other things than tensors, keys
    that do not match, a wrong config, or weights that are not finite.
    """
    state_dict = read_weights(path)
    try:
        metadata = read_metadata(path)
        config = parse_metadata(CatrConfig, metadata["config"]) if "config" in metadata else _derive_config(state_dict)
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder of `convert_file` (BERT's) or `save`."""
    return AutoTokenizer.from_pretrained(folder)


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
    first, second, third, fourth = (
        count(f"backbone.0.body.layer{stage}", default) for stage, default in enumerate(published.blocks, start=1)
    )
    return CatrConfig(
        hidden=hidden,
        heads=hidden // HEAD_WIDTH,
        encoder_layers=count("transformer.encoder.layers", published.encoder_layers),
        decoder_layers=count("transformer.decoder.layers", published.decoder_layers),
        feedforward=first_axis("transformer.encoder.layers.0.linear1.weight", published.feedforward),
        inner=first_axis("mlp.layers.0.weight", published.inner),
        vocabulary=first_axis("transformer.embeddings.word_embeddings.weight", published.vocabulary),
        positions=first_axis("transformer.embeddings.position_embeddings.weight", published.positions),
        blocks=(first, second, third, fourth),
    )
