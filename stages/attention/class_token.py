"""What the class token of a ViT looks at, in images of any shape."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.attention.maps import class_token_maps, resolve_index, rollout
from stages.models.vit import Backbone


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of one image, in patches: `heads` `(heads, rows, columns)`, and attention rollout's, where it was asked."""

    heads: Tensor
    rollout: Tensor | None

    @property
    def mean(self) -> Tensor:
        """The mean over the heads, `(rows, columns)`."""
        return self.heads.mean(0)


def resize_to_patches(image: Image.Image, short_side: int, patch: tuple[int, int]) -> Tensor:
    """`(3, H, W)` uint8: resized (bicubic) to a short side of about `short_side`, both sides whole patches.

    So no pixel is left out of the grid, whatever the image's shape.
    """
    scale = short_side / min(image.size)
    height, width = (
        max(1, round(side * scale / cell)) * cell for side, cell in zip((image.height, image.width), patch, strict=True)
    )
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@torch.inference_mode()
def class_token_attention(backbone: Backbone, images: list[Tensor], block: int, roll: bool) -> list[AttentionMaps]:
    """Maps of every image, `(3, H, W)` uint8 of one size; the ViT has a class token.

    Raises `InputError` for a block that it has not. Of all heads' weights only one block's are in memory at a time.
    """
    vit, maps = backbone.vit, []
    block = resolve_index(len(vit.blocks), block, "attention.class_token.block", "blocks")
    pixels = torch.stack(images).to(next(vit.parameters()).device)
    prefix, grid = vit.num_prefix_tokens, backbone.grid(*pixels.shape[-2:])

    passed: list[Tensor] = []  # rollout asks for no more of a block than the mean of its heads

    def note(number: int, weights: Tensor) -> None:
        if number == block:
            maps.extend(class_token_maps(weights, prefix, grid).cpu())
        if roll:
            passed.append(weights.mean(1, keepdim=True))

    backbone.capture_attention(pixels, note, None if roll else [block])
    rolled = list(rollout(passed, prefix, grid).cpu()) if roll else [None] * len(images)
    return [AttentionMaps(heads, one) for heads, one in zip(maps, rolled, strict=True)]
