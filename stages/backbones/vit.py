"""A timm `VisionTransformer` whose outputs have names, and the files it is kept in."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from stages.writing import replacing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as DINO and most ViTs expect


@dataclass(frozen=True)
class Architecture:
    """A small ViT with a convolutional stem for a patch embedding.

    The stem (convolutions, batch norm, ReLU, then 1x1 to `dim`; Xiao et al. 2021, "Early convolutions help
    transformers see better") is what lets so small a ViT learn on a CPU. Its halving convolutions have even kernels:
    with the usual 3x3, padded by 1, three of them centre a token's window 3.5 pixels above and left of its patch,
    and every mask that a head draws lands that far off (12 points of a linear head's mIoU).
    """

    side: int = 80  # of the square images it is trained on, in pixels
    dim: int = 128
    depth: int = 4
    heads: int = 4
    stem: tuple[int, ...] = (32, 64, 64, 128)
    kernels: tuple[int, ...] = (4, 4, 3, 4)
    strides: tuple[int, ...] = (2, 2, 1, 2)  # their product is the patch size, 8
    outputs: int = 0  # of the classification layer on the class token; 0 for none

    @classmethod
    def of(cls, fields: dict) -> "Architecture":
        """What `asdict` made, and JSON brought back with lists for tuples."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def stem(architecture: Architecture) -> ConvStem:
    """The convolutions in a patch embedding's place: `(B, dim, rows, columns)` of `(B, 3, H, W)`."""
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
    """Write weights with the architecture that they belong to."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    with replacing(path) as beside:
        save_file(weights, beside, metadata={"architecture": json.dumps(asdict(architecture))})


def read_architecture(path: Path) -> Architecture:
    """The architecture that a checkpoint of `save` carries; raises `ValueError` where there is none."""
    with safe_open(path, framework="pt") as checkpoint:
        metadata = checkpoint.metadata() or {}
    if "architecture" not in metadata:
        raise ValueError(f"{path} carries no architecture; expected a checkpoint that stages/backbones wrote")
    return Architecture.of(json.loads(metadata["architecture"]))


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Float `(B, 3, H, W)` from uint8 `images` of the same shape."""
    mean, std = (images.new_tensor(stats, dtype=torch.float32).view(3, 1, 1) for stats in (mean, std))
    return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Tokens:
    """What a ViT makes of `B` images, after its last norm.

    `patches` `(B, H // patch, W // patch, dim)`; `class_token` `(B, dim)`, or None where the model has none.
    """

    patches: Tensor
    class_token: Tensor | None


class Backbone(nn.Module):
    """A frozen ViT on uint8 images, which it normalises itself.

    Sides that are no multiple of the patch lose the remainder at the right and the bottom.

    That is what a patch embedding's convolution does by itself, and so what DINO's code does on VOC. Position
    embeddings are resampled to the image's grid (bicubic, antialiased: timm's `resample_abs_pos_embed`).
    """

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        config = getattr(vit, "pretrained_cfg", None) or {}
        self.mean, self.std = tuple(config.get("mean", MEAN)), tuple(config.get("std", STD))
        self.dim: int = vit.embed_dim
        self.heads: int = vit.blocks[-1].attn.num_heads
        self.patch: tuple[int, int] = vit.patch_embed.feat_ratio(as_scalar=False)

    def train(self, mode: bool = True) -> "Backbone":
        """Stays in eval mode: a frozen backbone has no other."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens of an image."""
        return height // self.patch[0], width // self.patch[1]

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of uint8 `images` `(B, 3, H, W)`."""
        images, (rows, columns) = self._prepared(images)
        tokens = self.vit.forward_features(images)  # (B, prefix + rows * columns, dim)
        patches = tokens[:, self.vit.num_prefix_tokens :].unflatten(1, (rows, columns))
        return Tokens(patches, tokens[:, 0] if self.vit.has_class_token else None)

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Attention weights of one block, `(B, heads, tokens, tokens)`, as `attentions` gives them.

        Raises `IndexError` for a block that the model has not.
        """
        number = range(len(self.vit.blocks))[block]
        return next(islice(self.attentions(images), number, None))

    def attentions(self, images: Tensor) -> Iterator[Tensor]:
        """Attention weights of block after block, `(B, heads, tokens, tokens)`, prefix tokens first; rows sum to 1.

        Computed from the blocks' own projections, as fused attention never shows its weights.
        """
        vit, (images, _) = self.vit, self._prepared(images)
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        for block in vit.blocks:
            yield _attention_weights(block.attn, block.norm1(x))
            x = block(x)

    def _prepared(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = images.shape[-2:]
        rows, columns = self.grid(height, width)
        if not (rows and columns):
            raise ValueError(f"a {height}x{width} image is smaller than one {self.patch[0]}x{self.patch[1]} patch")
        whole = images[..., : rows * self.patch[0], : columns * self.patch[1]]
        return normalise(whole, self.mean, self.std), (rows, columns)


def _attention_weights(attention: nn.Module, x: Tensor) -> Tensor:
    """What timm's `Attention` weighs its values with, `(B, heads, tokens, tokens)`, of normalised `x`."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))  # (B, tokens, 3, heads, dim / heads)
    query, key = (part.transpose(1, 2) for part in qkv.unbind(2)[:2])  # each (B, heads, tokens, dim / heads)
    query, key = attention.q_norm(query), attention.k_norm(key)
    return (query * attention.scale @ key.transpose(-2, -1)).softmax(-1)


def load(source: str) -> Backbone:
    """The frozen backbone from a `.safetensors` file of `save`, or a pretrained timm ViT by its name.

    Raises `FileNotFoundError` for a missing file and `ValueError` for a name that timm does not know or a model
    that is no `VisionTransformer`.
    """
    if source.endswith(".safetensors"):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no backbone checkpoint at {source}")
        vit = build(read_architecture(path))
        vit.load_state_dict(load_file(path))
        return Backbone(vit)
    if not timm.is_model(source.split(".")[0]):
        near = get_close_matches(source, timm.list_models("vit_*"), n=3, cutoff=0) or ["vit_small_patch16_224"]
        raise ValueError(f"unknown backbone '{source}'; a .safetensors file or a timm ViT, such as {', '.join(near)}")
    try:
        vit = timm.create_model(source, pretrained=True, num_classes=0, dynamic_img_size=True)
    except (RuntimeError, TypeError) as fault:  # an unknown tag; a model that has no such option
        raise ValueError(
            f"backbone '{source}': {str(fault).splitlines()[0]}; expected a timm VisionTransformer"
        ) from fault
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"backbone '{source}' is a {type(vit).__name__}, not a timm VisionTransformer")
    return Backbone(vit)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and their names: what a feature table is bound to."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
