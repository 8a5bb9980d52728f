"""Small random models and checkpoints in the layouts of the published ones."""

import torch
from torch import Tensor

from stages.models import vit
from stages.models.catr import Catr, CatrConfig

# Of the published kind: a checkpoint without metadata has its heads, width of the ResNet and special tokens.
SMALL_CATR = CatrConfig(
    hidden=64,
    heads=2,
    encoder_layers=2,
    decoder_layers=3,
    feedforward=96,
    inner=48,
    vocabulary=110,
    blocks=(1, 1, 1, 1),
)

Shapes = dict[str, tuple[int, ...]]


def small_backbone() -> vit.Backbone:
    """A ViT of the shipped kind, with patches of 8x8 pixels and random weights, always the same."""
    torch.manual_seed(0)
    return vit.Backbone(vit.build(vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 4))))


class Float64Backbone(vit.Backbone):
    """A backbone whose network computes in float64, from images that are normalized in float32."""

    def __init__(self, network):
        super().__init__(network)
        self.double()

    def _preprocess(self, images: Tensor) -> Tensor:
        return super()._preprocess(images).double()


def untrained_catr(config: CatrConfig = SMALL_CATR) -> Catr:
    """A frozen CATR with weights large enough for each token and cell to matter, and batch norm that does something."""
    torch.manual_seed(1)
    model = Catr(config)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith("running_var"):
                weight.uniform_(0.5, 2)
            elif name.startswith("backbone") and weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif name.startswith("mlp") and weight.dim() == 2:
                weight.mul_(6)
            elif weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "in_proj" in name:
                weight.mul_(3)
        model.transformer.embeddings.position_embeddings.weight.normal_()
        model.transformer.embeddings.word_embeddings.weight.normal_()
    return model.eval().requires_grad_(False)


def original_blip_shapes(
    dim: int,
    depth: int,
    patch: int,
    patches: int,
    width: int,
    layers: int,
    inner: int,
    vocabulary: int,
    positions: int,
    projection: int,
    queue: int,
) -> Shapes:
    """Names and shapes in the state dict of the original BLIP_Pretrain (models/blip_pretrain.py).

    `dim` and `depth` are those of the image tower, `width` and `layers` those of the text models.
    """
    text = (width, layers, inner, vocabulary, positions, dim)
    head = "text_decoder.cls.predictions"
    shapes: Shapes = {
        "image_queue": (projection, queue),
        "text_queue": (projection, queue),
        "queue_ptr": (1,),
        "temp": (),
    }
    for suffix in ("", "_m"):  # the weights, and their momentum copies
        shapes |= _image_tower(f"visual_encoder{suffix}", dim, depth, patch, patches)
        shapes |= _bert(f"text_encoder{suffix}", *text)
        shapes |= _linear(f"vision_proj{suffix}", projection, dim) | _linear(f"text_proj{suffix}", projection, width)
    shapes |= _linear("itm_head", 2, width) | _bert("text_decoder.bert", *text)
    shapes |= _linear(f"{head}.transform.dense", width, width) | _norm(f"{head}.transform.LayerNorm", width)
    return shapes | {f"{head}.bias": (vocabulary,)} | _linear(f"{head}.decoder", vocabulary, width)


def share_text_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make one tensor, in place, of what is one tensor in the original's model, except for the output weight.

    With a weight of its own, it shows where the output weight is used.
    """
    for name in weights:
        if name.startswith("text_decoder.bert.") and ".attention." not in name:
            weights[name] = weights[name.replace("text_decoder.bert", "text_encoder")]
    weights["text_decoder.cls.predictions.decoder.bias"] = weights["text_decoder.cls.predictions.bias"]
    return weights


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _image_tower(name: str, dim: int, depth: int, patch: int, patches: int) -> Shapes:
    """A ViT as in models/vit.py: qkv with bias, feedforward layers four times as wide."""
    shapes: Shapes = {f"{name}.cls_token": (1, 1, dim), f"{name}.pos_embed": (1, patches + 1, dim)}
    shapes |= {f"{name}.patch_embed.proj.weight": (dim, 3, patch, patch), f"{name}.patch_embed.proj.bias": (dim,)}
    for index in range(depth):
        block = f"{name}.blocks.{index}"
        shapes |= _norm(f"{block}.norm1", dim) | _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.attn.qkv", 3 * dim, dim) | _linear(f"{block}.attn.proj", dim, dim)
        shapes |= _linear(f"{block}.mlp.fc1", 4 * dim, dim) | _linear(f"{block}.mlp.fc2", dim, 4 * dim)
    return shapes | _norm(f"{name}.norm", dim)


def _bert(name: str, width: int, layers: int, inner: int, vocabulary: int, positions: int, dim: int) -> Shapes:
    """A BertModel as in models/med.py: no token types, no pooler, cross-attention to an image tower of width `dim`."""
    shapes: Shapes = {
        f"{name}.embeddings.position_ids": (1, positions),
        f"{name}.embeddings.word_embeddings.weight": (vocabulary, width),
        f"{name}.embeddings.position_embeddings.weight": (positions, width),
    }
    shapes |= _norm(f"{name}.embeddings.LayerNorm", width)
    for index in range(layers):
        layer = f"{name}.encoder.layer.{index}"
        for kind, source in (("attention", width), ("crossattention", dim)):
            shapes |= _linear(f"{layer}.{kind}.self.query", width, width)
            shapes |= _linear(f"{layer}.{kind}.self.key", width, source)
            shapes |= _linear(f"{layer}.{kind}.self.value", width, source)
            shapes |= _linear(f"{layer}.{kind}.output.dense", width, width)
            shapes |= _norm(f"{layer}.{kind}.output.LayerNorm", width)
        shapes |= _linear(f"{layer}.intermediate.dense", inner, width)
        shapes |= _linear(f"{layer}.output.dense", width, inner) | _norm(f"{layer}.output.LayerNorm", width)
    return shapes
