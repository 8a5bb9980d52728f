"""Attention of a ViT's class token, for images of any shape."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.attention.maps import class_token_maps, resolve_index, rollout
from stages.models.vit import Backbone


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of one image, in patches: `heads` `(heads, rows, columns)`, `rollout` `(rows, columns)` or None."""

    heads: Tensor
    rollout: Tensor | None

    @property
    def mean(self) -> Tensor:
        """The mean over the heads, `(rows, columns)`."""
        return self.heads.mean(0)


def resize_to_patches(image: Image.Image, short_side: int, patch: tuple[int, int]) -> Tensor:
    """`(3, H, W)` uint8: resized (bicubic) to a short side of about `short_side`, both sides multiples of the patch.

    So the grid covers all pixels, whatever the image's shape.
    """
    scale = short_side / min(image.size)
    height = max(1, round(image.height * scale / patch[0])) * patch[0]
    width = max(1, round(image.width * scale / patch[1])) * patch[1]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@torch.inference_mode()
def class_token_attention(
    backbone: Backbone, images: list[Tensor], block: int, with_rollout: bool
) -> list[AttentionMaps]:
    """Attention maps of the class token in `block`, for images `(3, H, W)` uint8 of one size.

    Raises `InputError` for a block that the ViT does not have.
    """
    vit = backbone.vit
    block = resolve_index(len(vit.blocks), block, "attention.class_token.block", "blocks")
    pixels = torch.stack(images).to(next(vit.parameters()).device)
    prefix = vit.num_prefix_tokens
    grid = backbone.grid(*pixels.shape[-2:])
    maps: list[Tensor] = []  # per image, (heads, rows, columns)
    head_means: list[Tensor] = []  # per block, (B, 1, tokens, tokens)

    def store_weights(number: int, weights: Tensor) -> None:
        if number == block:
            maps.extend(class_token_maps(weights, prefix, grid).cpu())
        if with_rollout:
            # Rollout needs only the mean over the heads, so the heads of one block at a time are in memory.
            head_means.append(weights.mean(1, keepdim=True))

    backbone.capture_attention(pixels, store_weights, None if with_rollout else [block])
    if not with_rollout:
        return [AttentionMaps(heads, None) for heads in maps]
    rollouts = rollout(head_means, prefix, grid).cpu()
    return [AttentionMaps(heads, image_rollout) for heads, image_rollout in zip(maps, rollouts, strict=True)]
