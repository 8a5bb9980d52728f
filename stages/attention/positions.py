"""How alike position embeddings are (Dosovitskiy et al., 2021, "An image is worth 16x16 words", figure 7)."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F


def has_positions(vit: VisionTransformer) -> bool:
    """Whether a ViT has learned position embeddings (some have rotary or relative ones)."""
    return getattr(vit, "pos_embed", None) is not None


@torch.no_grad()
def position_grid(vit: VisionTransformer, grid: tuple[int, int] | None = None) -> Tensor:
    """Position embeddings of the patches, `(rows, columns, dim)`; those of prefix tokens are left out.

    `grid` asks for them as the ViT resamples them to other rows and columns (bicubic, antialiased).
    """
    prefix, own = 0 if vit.no_embed_class else vit.num_prefix_tokens, tuple(vit.patch_embed.grid_size)
    embedded = vit.pos_embed.detach().cpu()  # (1, prefix + rows * columns, dim)
    if grid and tuple(grid) != own:
        embedded = resample_abs_pos_embed(embedded, new_size=list(grid), old_size=list(own), num_prefix_tokens=prefix)
    return embedded[0, prefix:].unflatten(0, tuple(grid or own))


def similarity(positions: Tensor) -> Tensor:
    """Cosine similarity of every patch's embedding to all others: `(R, C, R, C)` of `(R, C, dim)`."""
    unit = F.normalize(positions.double(), dim=-1).flatten(0, 1)
    return (unit @ unit.T).unflatten(1, positions.shape[:2]).unflatten(0, positions.shape[:2])


@dataclass(frozen=True)
class Structure:
    """How much of the image's grid the embeddings show; `neighbors` in percent."""

    neighbors: float  # patches whose most similar other patch touches them
    by_chance: float  # what `neighbors` would be if it were any other patch
    rank_correlation: float  # Spearman's, between similarity and distance in patches, over all pairs


def structure(alike: Tensor) -> Structure:
    """Of similarities `(R, C, R, C)`."""
    rows, columns = alike.shape[:2]
    places = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2)
    apart = places[:, None] - places[None]
    touching = np.abs(apart).max(-1) == 1
    flat = alike.reshape(len(places), len(places)).numpy().copy()
    pairs = np.triu_indices(len(places), 1)
    correlation = spearmanr(flat[pairs], np.hypot(*apart[pairs].T)).statistic
    np.fill_diagonal(flat, -np.inf)
    nearest = touching[np.arange(len(places)), flat.argmax(1)].mean()
    return Structure(
        float(100 * nearest), float(100 * touching.sum() / (touching.size - len(places))), float(correlation)
    )
