"""Similarity of position embeddings (Dosovitskiy et al., 2021, "An image is worth 16x16 words", figure 7)."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F


def has_positions(vit: VisionTransformer | Eva) -> bool:
    """Whether a ViT has learned position embeddings; those with rotary or relative positions have none."""
    return getattr(vit, "pos_embed", None) is not None


@torch.no_grad()
def position_grid(vit: VisionTransformer | Eva, grid: Sequence[int] | None = None) -> Tensor:
    """Position embeddings of the patches, `(rows, columns, dim)`; those of prefix tokens are left out.

    `grid` (rows, columns) resamples them as the ViT does for images of another shape (bicubic, antialiased).
    """
    assert vit.pos_embed is not None  # callers check `has_positions`
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    native = list(vit.patch_embed.grid_size)
    grid = native if grid is None else list(grid)
    embeddings = vit.pos_embed.detach().cpu()  # (1, prefix + rows * columns, dim)
    if grid != native:
        embeddings = resample_abs_pos_embed(embeddings, new_size=grid, old_size=native, num_prefix_tokens=prefix)
    return embeddings[0, prefix:].unflatten(0, grid)


def cosine_similarity(positions: Tensor) -> Tensor:
    """Cosine similarity of every patch's embedding to every other: `(R, C, R, C)` from `(R, C, dim)`, in float64."""
    grid = positions.shape[:2]
    unit = F.normalize(positions.double(), dim=-1).flatten(0, 1)
    return (unit @ unit.T).unflatten(1, grid).unflatten(0, grid)


def grid_structure(similarity: Tensor) -> dict[str, float]:
    """How clearly embeddings reflect the image's grid, from similarities `(R, C, R, C)`.

    `neighbors`: percent of the patches whose most similar other patch is one of their up to eight neighbors.
    `by_chance`: the expected value of `neighbors` for a random other patch. `rank_correlation`: Spearman's, between
    similarity and distance in patches, over all pairs.
    """
    rows, columns = similarity.shape[:2]
    count = rows * columns
    coordinates = np.indices((rows, columns)).reshape(2, count).T
    offsets = coordinates[:, None] - coordinates[None]  # (count, count, 2)
    is_neighbor = np.abs(offsets).max(-1) == 1
    matrix = similarity.reshape(count, count).numpy().copy()
    pairs = np.triu_indices(count, 1)
    correlation = spearmanr(matrix[pairs], np.hypot(*offsets[pairs].T)).statistic
    np.fill_diagonal(matrix, -np.inf)  # a patch is not its own most similar one
    most_similar = matrix.argmax(1)
    return {
        "neighbors": float(100 * is_neighbor[np.arange(count), most_similar].mean()),
        "by_chance": float(100 * is_neighbor.sum() / (is_neighbor.size - count)),
        "rank_correlation": float(correlation),
    }
