"""Frozen timm vision transformers with named outputs, and the checkpoint files that they load from.

ViT code bases differ in two details. This module follows timm:

- Position embeddings are resampled to the grid of an image by antialiased bicubic interpolation, with Pillow's kernel
  (a = -0.5; timm's `resample_abs_pos_embed`). DINO's and BLIP's own code do not antialias and use a = -0.75; DINO's
  also scales by (side + 0.1) / trained side.
- An image whose sides are not multiples of the patch size loses the remainder at the right and the bottom, as a
  strided convolution drops it by itself, and as DINO's code does on VOC. Nothing is padded.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, cast

import timm
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from timm.layers import HybridEmbed
from timm.models import PretrainedCfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from stages.core.weights_file import save_weights
from stages.models.weights import (
    LARGEST_SIZE,
    Size,
    check_finite_weights,
    check_weights,
    describe_error,
    parse_metadata,
    read_metadata,
    read_weights,
)
from stages.params.model_source import is_checkpoint_file, split_revision

HEAD_WIDTH = 64  # features per attention head: true of ViT-Ti to ViT-L, whose checkpoints do not store it
WIDER_HEADS = (1280, 1408, 1664)  # embedding widths that break this rule: ViT-H, ViT-g and ViT-G all have 16 heads
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB pixels, as DINO and most ViTs are trained with
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """A small ViT with a convolutional stem as its patch embedding.

    The stem is convolutions with batch norm and ReLU, then a 1x1 convolution to `dim` (Xiao et al. 2021, "Early
    convolutions help transformers see better"). It lets a ViT this small learn on a CPU. Its stride-2 convolutions have
    even kernels: with the usual 3x3 kernels and a padding of 1, three of them center the receptive field of a token 3.5
    pixels above and left of its patch. Every predicted mask is then off by that much, which cost 12 points of a linear
    head's mIoU.
    """

    side: Size = 80  # of the square training images, in pixels
    dim: Size = 128
    depth: Size = 4
    heads: Size = 4
    stem: tuple[Size, ...] = (32, 64, 64, 128)
    kernels: tuple[Size, ...] = (4, 4, 3, 4)
    strides: tuple[Size, ...] = (2, 2, 1, 2)  # their product is the patch size, 8
    outputs: Annotated[int, Field(ge=0, le=LARGEST_SIZE)] = 0  # of the class token's layer; 0 for no layer

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def from_dict(cls, fields: object) -> "Architecture":
        """The architecture from the output of `asdict`, also after JSON has turned its tuples into lists.

        Raises `ValueError`, on one line, for anything else.
        """
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            raise ValueError(describe_error(error)) from error

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of its {self.heads} heads")
        if not len(self.stem) == len(self.kernels) == len(self.strides):
            raise ValueError("stem, kernels and strides differ in length")


def stem(architecture: Architecture) -> ConvStem:
    """The convolutional stem, which maps `(B, 3, H, W)` to `(B, dim, rows, columns)`."""
    layers = len(architecture.stem)
    return ConvStem(
        depth=layers + 1,
        channels=(*architecture.stem, architecture.dim),
        kernel_size=(*architecture.kernels, 1),
        stride=(*architecture.strides, 1),
        padding=(1,) * layers + (0,),
        act_layer=nn.ReLU,
    )


def build(architecture: Architecture) -> VisionTransformer:
    """A `VisionTransformer` with random weights."""
    return VisionTransformer(
        img_size=architecture.side,
        patch_size=1,  # of the stem's feature map
        num_classes=architecture.outputs,
        embed_dim=architecture.dim,
        depth=architecture.depth,
        num_heads=architecture.heads,
        embed_layer=partial(HybridEmbed, backbone=stem(architecture), proj=False),
        dynamic_img_size=True,
    )


def save(path: Path, model: VisionTransformer, architecture: Architecture) -> None:
    """Write the weights, with the architecture as JSON in the metadata of the file."""
    save_weights(path, model.state_dict(), architecture=asdict(architecture))


def read_architecture(path: Path) -> Architecture:
    """The architecture in a file of `save`. Raises `ValueError` if the file has none."""
    metadata = read_metadata(path)
    if "architecture" not in metadata:
        raise ValueError(f"{path} has no architecture in its metadata; expected a checkpoint that this project saved")
    return parse_metadata(Architecture, metadata["architecture"])


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalized float32 images from uint8 `images`, both `(B, 3, H, W)`."""
    channel_mean = _channel_values(tuple(mean), images.device)
    channel_std = _channel_values(tuple(std), images.device)
    return (images.float() / 255 - channel_mean) / channel_std


@cache  # on a GPU, each copy from the CPU would wait for all that was started before it
def _channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one value per channel, `(3, 1, 1)` float32, on `device`."""
    with torch.inference_mode(False):  # autograd refuses tensors that were created in inference mode
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


@dataclass(frozen=True)
class Tokens:
    """The output tokens of a ViT for `B` images, after its last norm.

    `patches` is `(B, H // patch, W // patch, dim)`; `class_token` is `(B, dim)`, or None if the model has none.
    """

    patches: Tensor
    class_token: Tensor | None


class Backbone(nn.Module):
    """A frozen ViT that takes uint8 images and normalizes them itself.

    `architecture` comes from a file of `save` and is None for other models. Register tokens are not part of the output.
    The output is that of the last block, or after `use_blocks` of several, concatenated: `dim` is then wider.
    """

    def __init__(self, vit: VisionTransformer | Eva, architecture: Architecture | None = None):
        super().__init__()
        self.architecture = architecture
        self.vit = vit.eval().requires_grad_(False)
        pretrained_cfg = getattr(vit, "pretrained_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(pretrained_cfg.get("mean", MEAN))
        self.std: tuple[float, ...] = tuple(pretrained_cfg.get("std", STD))
        self.blocks: list[Any] = list(vit.blocks)  # typed `Any`, as torch's stubs do not know the layers of a block
        self.dim: int = vit.embed_dim
        self.output_blocks: list[int] | None = None
        self.heads: int = self.blocks[-1].attn.num_heads
        rows, columns = cast(tuple[int, int], vit.patch_embed.feat_ratio(as_scalar=False))
        self.patch: tuple[int, int] = (rows, columns)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: a frozen backbone has no other."""
        return super().train(False)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return getattr(self.vit, "cls_token", None) is not None

    def use_blocks(self, indices: Sequence[int]) -> None:
        """From now on, return the outputs of these blocks, in ascending order, each after the model's last norm.

        Outputs are concatenated, as in the linear evaluation of DINOv2 (Oquab et al. 2023, section 7).
        """
        self.output_blocks = sorted(indices)
        self.dim = len(indices) * self.vit.embed_dim

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens for an image of `height` x `width` pixels."""
        return height // self.patch[0], width // self.patch[1]

    def forward(self, images: Tensor) -> Tokens:
        """The tokens of uint8 `images` `(B, 3, H, W)`. Raises `ValueError` if they are smaller than a patch."""
        rows, columns = self.grid(*images.shape[-2:])
        tokens = self._output(self._preprocess(images))  # (B, prefix + rows * columns, dim)
        patches = tokens[:, self.vit.num_prefix_tokens :].unflatten(1, (rows, columns))  # (B, rows, columns, dim)
        return Tokens(patches, tokens[:, 0] if self.has_class_token else None)

    def _output(self, pixels: Tensor) -> Tensor:
        """All tokens after the last block, or after `output_blocks`: `(B, prefix + rows * columns, dim)`."""
        if self.output_blocks is None:
            return self.vit.forward_features(pixels)
        outputs: list[Any] = self.vit.forward_intermediates(  # type: ignore[assignment]  # typed for all its options
            pixels,
            indices=self.output_blocks,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if self.vit.num_prefix_tokens:  # then each block's patch tokens come with its prefix tokens
            outputs = [torch.cat([prefix, patches], 1) for patches, prefix in outputs]
        return torch.cat(outputs, 2)

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """The attention weights of one block, as `capture_attention` passes them: `(B, heads, tokens, tokens)`.

        Raises `IndexError` if the model has no such block.
        """
        index = range(len(self.blocks))[block]
        captured: list[Tensor] = []
        self.capture_attention(images, lambda _, weights: captured.append(weights), [index])
        return captured[0]

    def capture_attention(
        self, images: Tensor, callback: Callable[[int, Tensor], None], blocks: Sequence[int] | None = None
    ) -> None:
        """Run the model on `images` and call `callback(block, weights)` for each of `blocks` in turn (None: for all).

        `weights` is `(B, heads, tokens, tokens)`, prefix tokens first; its rows sum to 1. The block continues with the
        same tensor, so `callback` must not write to it.
        """
        # Fused attention kernels never materialize the weights. So these layers run unfused for this pass, where the
        # weights go through a dropout layer, which passes them on in eval mode.
        numbers = range(len(self.blocks)) if blocks is None else blocks
        layers = {number: self.blocks[number].attn for number in numbers}
        fused = {number: layer.fused_attn for number, layer in layers.items()}

        def capture(number: int, _module: nn.Module, _inputs: tuple, weights: Tensor) -> None:
            callback(number, weights)

        handles = []
        try:
            for number, layer in layers.items():
                layer.fused_attn = False
                handles.append(layer.attn_drop.register_forward_hook(partial(capture, number)))
            self.vit.forward_features(self._preprocess(images))
        finally:
            for handle in handles:
                handle.remove()
            for number, layer in layers.items():
                layer.fused_attn = fused[number]

    def _preprocess(self, images: Tensor) -> Tensor:
        """Normalized images, cut to whole patches."""
        height, width = images.shape[-2:]
        rows, columns = self.grid(height, width)
        if not (rows and columns):
            raise ValueError(f"a {height}x{width} image is smaller than one {self.patch[0]}x{self.patch[1]} patch")
        whole_patches = images[..., : rows * self.patch[0], : columns * self.patch[1]]
        return normalize(whole_patches, self.mean, self.std)


def load(source: str, path: Path | None = None, random: bool = False) -> Backbone:
    """The frozen backbone from a checkpoint file, or a pretrained timm ViT named `NAME` or `NAME@REVISION`.

    `path` is the local file with the weights of `source`. Without it, a file is read from `source` itself, and the
    weights of a timm model come from the hub. A file is either from `save`, or holds a plain ViT under the key names of
    DINO and timm. With `random`, the weights are new, drawn from torch's random number generator; a timm model then
    needs no file.

    Raises `FileNotFoundError` for a missing file, and `ValueError` for a name that timm does not know, a model that is
    not a ViT, or weights that do not match the model key for key or are not finite.
    """
    if not is_checkpoint_file(source):
        name, revision = split_revision(source)
        return _load_timm(name, revision, path, random)
    path = path or Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no backbone checkpoint at {path}")
    weights = read_weights(path)
    if "architecture" in read_metadata(path):
        try:
            architecture = read_architecture(path)
            with torch.device("meta"):  # no memory for sizes that may be wrong
                expected = build(architecture).state_dict()
            check_weights(weights, expected)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not match its own architecture: {error}") from error
        model = build(architecture)
        if not random:
            model.load_state_dict(weights)
        return _checked(Backbone(model, architecture))
    return _checked(Backbone(build_plain_vit(weights, str(path), random=random)))


def _checked(backbone: Backbone) -> Backbone:
    """Return `backbone`; raise `ValueError` if a weight is not finite."""
    check_finite_weights(backbone)
    return backbone


def pretrained_config(name: str) -> PretrainedCfg:
    """timm's config of a pretrained model. Raises `ValueError`, with similar names, if timm has no weights for it."""
    model_name = name.split(".")[0]
    if not timm.is_model(model_name):
        similar = get_close_matches(name, timm.list_models("vit_*"), n=3, cutoff=0) or ["vit_small_patch16_224"]
        raise ValueError(
            f"unknown backbone '{name}'; expected a checkpoint file or a timm ViT, such as {', '.join(similar)}"
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        tags = ", ".join(timm.list_pretrained(f"{model_name}.*")) or "none"
        raise ValueError(f"backbone '{name}': {error} There are: {tags}") from error
    if not (config and config.hf_hub_id):
        raise ValueError(f"timm has no weights for '{name}' on the hub")
    return config


def _load_timm(name: str, revision: str | None, path: Path | None, random: bool) -> Backbone:
    """A timm ViT with the weights at `path`, or from the hub, or random ones."""
    hub_id = pretrained_config(name).hf_hub_id
    overlay = {"hf_hub_id": f"{hub_id}@{revision}" if revision else hub_id}
    if path:
        overlay = {"file": str(path)}
    try:
        model = timm.create_model(
            name, pretrained=not random, num_classes=0, dynamic_img_size=True, pretrained_cfg_overlay=overlay
        )
    except (RuntimeError, TypeError, SafetensorError) as error:  # TypeError: not a ViT, so no `dynamic_img_size`
        message = " ".join(str(error).split())[:300]  # one line; torch lists every key
        raise ValueError(f"backbone '{name}': {message}; expected a timm VisionTransformer") from error
    if not isinstance(model, VisionTransformer | Eva):
        raise ValueError(f"backbone '{name}' is a {type(model).__name__}, not a timm VisionTransformer")
    return _checked(Backbone(model))


def build_plain_vit(
    weights: dict[str, Tensor], name: str, outputs: int = 0, *, random: bool = False
) -> VisionTransformer:
    """A plain ViT from weights under the key names of DINO and timm; `name` is for error messages.

    All sizes are derived from the shapes. Prefixes of training wrappers (`module.`, `backbone.`) are removed. So is a
    `head`, unless `outputs` asks for a classification layer of that size. With `random`, the model keeps its random
    weights. Raises `ValueError` for missing keys, unexpected keys and unexpected shapes.
    """
    state_dict = {}
    for key, weight in weights.items():
        key = key.removeprefix("module.").removeprefix("backbone.")
        if outputs or not key.startswith("head."):
            state_dict[key] = weight
    try:
        dim, _, *patch = state_dict["patch_embed.proj.weight"].shape  # (dim, 3, patch, patch)
        _, tokens, _ = state_dict["pos_embed"].shape  # (1, 1 + grid * grid, dim)
        depth = 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("blocks."))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name} is not a plain ViT: no patch_embed.proj.weight, pos_embed or blocks") from error
    if len(patch) != 2:
        raise ValueError(f"{name} is not a plain ViT: patch_embed.proj.weight is not from a 2-D convolution")
    if dim % HEAD_WIDTH or dim in WIDER_HEADS:
        raise ValueError(f"{name}: the number of heads of a ViT of width {dim} is unknown; name a timm model instead")
    model = VisionTransformer(
        img_size=round(max(tokens - 1, 1) ** 0.5) * patch[0],
        patch_size=(patch[0], patch[1]),
        num_classes=outputs,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // HEAD_WIDTH,
        dynamic_img_size=True,
    )
    try:
        check_weights(state_dict, model.state_dict())
    except ValueError as error:
        raise ValueError(f"{name} is not a plain ViT: {error}") from error
    if not random:
        model.load_state_dict(state_dict)
    return model


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and their names. Cached features record it, to stay tied to their model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
