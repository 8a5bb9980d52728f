"""A timm ViT whose outputs have names, and the files it is kept in.

Where libraries differ, this one does as timm does. Position embeddings are resampled to an image's grid bicubically,
antialiased (`resample_abs_pos_embed`), whose kernel is Pillow's (a = -0.5); DINO's own code and BLIP's resample without
antialiasing, with a = -0.75, and DINO's scales by (side + 0.1) / own side. An image's sides that are no multiple of the
patch lose the remainder at the right and the bottom, as a patch embedding's convolution does by itself, and so as
DINO's code does on VOC. Nothing is padded.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import HybridEmbed
from timm.models import PretrainedCfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from stages.core.atomic import atomic_write
from stages.models.weights import read_weights
from stages.params.model_source import is_checkpoint_file, split_revision

HEAD_WIDTH = 64  # of an attention head, in ViTs whose checkpoints do not say
OTHER_HEADS = (1280,)  # widths whose heads are wider: ViT-H has 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as DINO and most ViTs expect


@dataclass(frozen=True)
class Architecture:
    """A small ViT with a convolutional stem for a patch embedding.

    The stem (convolutions, batch norm, ReLU, then 1x1 to `dim`; Xiao et al. 2021, "Early convolutions help
    transformers see better") is what lets so small a ViT learn on a CPU. Its halving convolutions have even kernels:
    with the usual 3x3, padded by 1, three of them center a token's window 3.5 pixels above and left of its patch,
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
    def from_dict(cls, fields: dict) -> "Architecture":
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
    with atomic_write(path) as beside:
        save_file(weights, beside, metadata={"architecture": json.dumps(asdict(architecture))})


def read_architecture(path: Path) -> Architecture:
    """The architecture that a checkpoint of `save` carries; raises `ValueError` where there is none."""
    with safe_open(path, framework="pt") as checkpoint:
        metadata = checkpoint.metadata() or {}
    if "architecture" not in metadata:
        raise ValueError(f"{path} carries no architecture; expected a checkpoint that stages/models wrote")
    return Architecture.from_dict(json.loads(metadata["architecture"]))


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
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
    """A frozen ViT on uint8 images, which it normalizes itself.

    Sides that are no multiple of the patch lose the remainder at the right and the bottom. `architecture` is what a
    checkpoint of `save` carries. Register tokens, where a model has them, stay inside.
    """

    def __init__(self, vit: VisionTransformer | Eva, architecture: Architecture | None = None):
        super().__init__()
        self.architecture = architecture
        self.vit = vit.eval().requires_grad_(False)
        config = getattr(vit, "pretrained_cfg", None) or {}
        self.mean, self.std = tuple(config.get("mean", MEAN)), tuple(config.get("std", STD))
        self.dim: int = vit.embed_dim
        self.heads: int = vit.blocks[-1].attn.num_heads
        self.patch: tuple[int, int] = vit.patch_embed.feat_ratio(as_scalar=False)

    def train(self, mode: bool = True) -> "Backbone":
        """Stays in eval mode: a frozen backbone has no other."""
        return super().train(False)

    @property
    def has_class_token(self) -> bool:
        """Whether the first of its tokens is a class token."""
        return getattr(self.vit, "cls_token", None) is not None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens of an image."""
        return height // self.patch[0], width // self.patch[1]

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of uint8 `images` `(B, 3, H, W)`."""
        images, (rows, columns) = self._prepared(images)
        tokens = self.vit.forward_features(images)  # (B, prefix + rows * columns, dim)
        patches = tokens[:, self.vit.num_prefix_tokens :].unflatten(1, (rows, columns))
        return Tokens(patches, tokens[:, 0] if self.has_class_token else None)

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Attention weights of one block, `(B, heads, tokens, tokens)`, as `watch` gives them.

        Raises `IndexError` for a block that the model has not.
        """
        found: list[Tensor] = []
        asked = range(len(self.vit.blocks))[block]
        self.capture_attention(images, lambda number, weights: found.append(weights), [asked])
        return found[0]

    def capture_attention(
        self, images: Tensor, note: Callable[[int, Tensor], None], blocks: Sequence[int] | None = None
    ) -> None:
        """Pass `images` through, and `note` the number and the attention weights of one block after another.

        Weights are `(B, heads, tokens, tokens)`, prefix tokens first; rows sum to 1. `blocks` are all, if not told.
        """

        def shown(number: int, attention: nn.Module, asked: tuple, settings: dict, _: Tensor) -> None:
            with _unfused(attention, partial(note, number)):
                attention.forward(*asked, **settings)

        handles = [
            self.vit.blocks[number].attn.register_forward_hook(partial(shown, number), with_kwargs=True)
            for number in (range(len(self.vit.blocks)) if blocks is None else blocks)
        ]
        try:
            self.vit.forward_features(self._prepared(images)[0])
        finally:
            for handle in handles:
                handle.remove()

    def _prepared(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = images.shape[-2:]
        rows, columns = self.grid(height, width)
        if not (rows and columns):
            raise ValueError(f"a {height}x{width} image is smaller than one {self.patch[0]}x{self.patch[1]} patch")
        whole = images[..., : rows * self.patch[0], : columns * self.patch[1]]
        return normalize(whole, self.mean, self.std), (rows, columns)


@contextmanager
def _unfused(attention: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Let an attention layer show its weights, which fused kernels never do: they pass through its dropout."""
    fused, attention.fused_attn = attention.fused_attn, False
    handle = attention.attn_drop.register_forward_hook(lambda module, given, weights: note(weights))
    try:
        yield
    finally:
        handle.remove()
        attention.fused_attn = fused


def load(source: str, path: Path | None = None) -> Backbone:
    """The frozen backbone from a checkpoint's file, or a pretrained timm ViT, `NAME` or `NAME@REVISION`.

    `path` is where the weights of `source` lie; without it, those of a name come from the hub. A file is one of
    `save`, or holds a plain ViT under DINO's and timm's names. Raises `FileNotFoundError` for a missing file and
    `ValueError` for a name that timm does not know, a model that is no ViT, or weights that do not fit one key for key.
    """
    if not is_checkpoint_file(source):
        return _from_timm(*split_revision(source), path)
    path = path or Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no backbone checkpoint at {path}")
    weights = read_weights(path)
    if path.suffix == ".safetensors" and "architecture" in _metadata(path):
        try:
            architecture = read_architecture(path)
            network = build(architecture)
            network.load_state_dict(weights)
        except (RuntimeError, TypeError) as fault:
            raise ValueError(f"{path} is no whole checkpoint of ours: {' '.join(str(fault).split())[:300]}") from fault
        return Backbone(network, architecture)
    return Backbone(build_plain_vit(weights, str(path)))


def pretrained_config(name: str) -> PretrainedCfg:
    """What timm knows of a pretrained model; raises `ValueError` for a name without weights, with near ones."""
    if not timm.is_model(name.split(".")[0]):
        near = get_close_matches(name, timm.list_models("vit_*"), n=3, cutoff=0) or ["vit_small_patch16_224"]
        raise ValueError(f"unknown backbone '{name}'; a checkpoint's file or a timm ViT, such as {', '.join(near)}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as fault:  # an unknown tag
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise ValueError(f"backbone '{name}': {fault} There are: {', '.join(tags) or 'none'}") from fault
    if not (config and config.hf_hub_id):
        raise ValueError(f"timm has no weights for '{name}' on the hub")
    return config


def _from_timm(name: str, revision: str | None, path: Path | None) -> Backbone:
    config = pretrained_config(name)
    overlay = {"file": str(path)} if path else {"hf_hub_id": config.hf_hub_id + (f"@{revision}" if revision else "")}
    asked = {"num_classes": 0, "dynamic_img_size": True, "pretrained_cfg_overlay": overlay}
    try:
        network = timm.create_model(name, pretrained=True, **asked)
    except (RuntimeError, TypeError, SafetensorError) as fault:  # weights that do not fit; a model without an option
        told = " ".join(str(fault).split())[:300]
        raise ValueError(f"backbone '{name}': {told}; expected a timm VisionTransformer") from fault
    if not isinstance(network, VisionTransformer | Eva):
        raise ValueError(f"backbone '{name}' is a {type(network).__name__}, not a timm VisionTransformer")
    return Backbone(network)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as checkpoint:
        return checkpoint.metadata() or {}


def build_plain_vit(weights: dict[str, Tensor], name: str, outputs: int = 0) -> VisionTransformer:
    """A plain ViT from weights under DINO's and timm's names; sizes are told by shapes.

    A training's wrappers (`module.`, `backbone.`) and a projection `head` are taken off. `outputs` keeps a
    classification layer of that many. Raises `ValueError` where a key is missing, left over, or of another shape.
    """
    bare = {key.removeprefix("module.").removeprefix("backbone."): one for key, one in weights.items()}
    bare = {key: one for key, one in bare.items() if outputs or not key.startswith("head.")}
    try:
        (dim, _, *patch), (_, tokens, _) = bare["patch_embed.proj.weight"].shape, bare["pos_embed"].shape
        depth = 1 + max(int(key.split(".")[1]) for key in bare if key.startswith("blocks."))
    except (KeyError, ValueError) as fault:
        raise ValueError(f"{name} holds no plain ViT: no patch_embed.proj.weight, pos_embed or blocks") from fault
    if len(patch) != 2:
        raise ValueError(f"{name} holds no plain ViT: patch_embed.proj.weight is no convolution's")
    if dim % HEAD_WIDTH or dim in OTHER_HEADS:
        raise ValueError(f"{name}: heads of a ViT {dim} wide are not known; name timm's model of it")
    network = VisionTransformer(
        img_size=round(max(tokens - 1, 1) ** 0.5) * patch[0],
        patch_size=tuple(patch),
        num_classes=outputs,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // HEAD_WIDTH,
        dynamic_img_size=True,
    )
    try:
        network.load_state_dict(bare)
    except RuntimeError as fault:
        told = " ".join(str(fault).split())
        raise ValueError(f"{name} holds no plain ViT: {told[:300]}") from fault
    return network


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and their names: what a feature table is bound to."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
