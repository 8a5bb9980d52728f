"""Ranks and recall at K between images and captions, as a pure function of their embeddings."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

AT = (1, 5, 10)
CELLS = 2**25  # similarities held at once: 128 MiB


def compute_ranks(queries: Tensor, gallery: Tensor, query_owners: Tensor, gallery_owners: Tensor) -> np.ndarray:
    """The rank, from 1, of each query's best right answer: `(Q,)` int64.

    `queries` `(Q, dim)` and `gallery` `(G, dim)` are compared by dot product; an entry is right where its owner (an
    image's number) is the query's, and other right entries never stand in the way. Ties count against us: whatever is
    wrong and as similar as the right answer ranks before it. Raises `ValueError` for a query without a right answer
    and for embeddings that are no numbers.
    """
    if not (bool(queries.isfinite().all()) and bool(gallery.isfinite().all())):
        raise ValueError("embeddings that are no finite numbers have no ranks")
    places, told = _right_places(query_owners, gallery_owners)
    found = []
    for first, similar in _blocks(queries, gallery):
        some = slice(first, first + len(similar))
        right = similar.gather(1, places[some]).masked_fill(~told[some], -torch.inf)
        best = right.amax(1, keepdim=True)
        found.append((similar >= best).sum(1) - (right >= best).sum(1) + 1)
    return torch.cat(found).cpu().numpy()


def _right_places(query_owners: Tensor, gallery_owners: Tensor) -> tuple[Tensor, Tensor]:
    """Where each query's right answers stand in the gallery, `(Q, most)`, and which of these places are meant."""
    order = gallery_owners.argsort(stable=True)
    owners = gallery_owners[order]
    first, end = (torch.searchsorted(owners, query_owners, right=right) for right in (False, True))
    count = end - first
    if not len(count) or not bool(count.all()):
        raise ValueError("a query has no right answer in the gallery")
    step = torch.arange(int(count.max()), device=owners.device)
    told = step < count[:, None]
    return order[(first[:, None] + step).clamp(max=len(order) - 1)], told


def nearest_neighbors(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Gallery places `(Q, count)` of the most similar entries, the best first; ties by place."""
    return torch.cat([_order(similar)[:, :count].clone() for _, similar in _blocks(queries, gallery)])


def _order(similar: Tensor) -> Tensor:
    return similar.argsort(dim=1, descending=True, stable=True)


def _blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Similarities of some queries with the whole gallery, and the first query's place."""
    step = max(1, CELLS // len(gallery))
    for first in range(0, len(queries), step):
        yield first, queries[first : first + step] @ gallery.T


def recall_summary(found: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, median and mean rank."""
    recall = {f"r_at_{at}": 100 * float((found <= at).mean()) for at in AT}
    return {**recall, "median_rank": float(np.median(found)), "mean_rank": float(found.mean())}
