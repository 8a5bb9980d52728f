"""Ranks and recall at K between images and captions, as pure functions of their embeddings."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
BLOCK_SIZE = 2**25  # similarities computed at once: 128 MiB of float32


def compute_ranks(queries: Tensor, gallery: Tensor, query_image_ids: Tensor, gallery_image_ids: Tensor) -> np.ndarray:
    """The rank, from 1, of each query's best match: `(Q,)` int64.

    `queries` `(Q, dim)` and `gallery` `(G, dim)` are compared by dot product. A gallery entry matches a query if their
    image IDs (integers) are equal; a query's other matches do not count as competitors. Ties are pessimistic: a
    non-match as similar as the best match ranks before it. Raises `ValueError` for a query without a match and for
    embeddings that are not finite.
    """
    if not (bool(queries.isfinite().all()) and bool(gallery.isfinite().all())):
        raise ValueError("embeddings are not finite, so they have no ranks")
    match_indices, is_match = _match_indices(query_image_ids, gallery_image_ids)
    ranks = []
    for first, similarities in _similarity_blocks(queries, gallery):
        block = slice(first, first + len(similarities))
        match_similarities = similarities.gather(1, match_indices[block]).masked_fill(~is_match[block], -torch.inf)
        best = match_similarities.amax(1, keepdim=True)
        ranks.append((similarities >= best).sum(1) - (match_similarities >= best).sum(1) + 1)
    return torch.cat(ranks).cpu().numpy()


def _match_indices(query_image_ids: Tensor, gallery_image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gallery indices of each query's matches, `(Q, most matches)`, and a mask that is False on padding."""
    order = gallery_image_ids.argsort(stable=True)
    sorted_ids = gallery_image_ids[order]
    first = torch.searchsorted(sorted_ids, query_image_ids)
    count = torch.searchsorted(sorted_ids, query_image_ids, right=True) - first
    if not len(count) or not bool(count.all()):
        raise ValueError("a query has no match in the gallery")
    offset = torch.arange(int(count.max()), device=order.device)
    is_match = offset < count[:, None]
    return order[(first[:, None] + offset).clamp(max=len(order) - 1)], is_match


def nearest_neighbors(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Gallery indices `(Q, count)` of the most similar entries, best first; ties by index."""
    nearest = []
    for _, similarities in _similarity_blocks(queries, gallery):
        columns = []
        for _ in range(min(count, len(gallery))):
            best = similarities.argmax(1)  # of equal values the first; a few passes take a tenth of a sort's time
            similarities.scatter_(1, best[:, None], -torch.inf)
            columns.append(best)
        nearest.append(torch.stack(columns, dim=1))
    return torch.cat(nearest)


def _similarity_blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Similarities of consecutive queries with the whole gallery, and the index of the first query."""
    step = max(1, BLOCK_SIZE // len(gallery))
    for first in range(0, len(queries), step):
        yield first, queries[first : first + step] @ gallery.T


def recall_summary(ranks: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median and mean rank."""
    recall = {f"r_at_{k}": 100 * float((ranks <= k).mean()) for k in RECALL_AT}
    return {**recall, "median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}
