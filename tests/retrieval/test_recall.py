"""Ranks and recall by hand, and in blocks."""

import numpy as np
import pytest
import torch

from stages.retrieval import recall
from stages.retrieval.recall import compute_ranks, nearest_neighbors, recall_summary


def embeddings(similarities):
    """Queries and a gallery whose dot products are `similarities`, exactly: the gallery is the unit vectors."""
    queries = torch.tensor(similarities, dtype=torch.float64)
    return queries, torch.eye(queries.shape[1], dtype=torch.float64)


def test_ranks_and_recall_by_hand():
    similarities = np.zeros((4, 12))
    for row, better in enumerate((0, 3, 7, 11)):  # how many non-matches are more similar
        non_matches = [index for index in range(12) if index != row]
        similarities[row, row] = 0.5
        similarities[row, non_matches[:better]] = 0.9
    ranks = compute_ranks(*embeddings(similarities), torch.arange(4), torch.arange(12))
    assert ranks.tolist() == [1, 4, 8, 12]
    assert recall_summary(ranks) == {
        "r_at_1": 25.0,
        "r_at_5": 50.0,
        "r_at_10": 75.0,
        "median_rank": 6.0,
        "mean_rank": 6.25,
    }


def test_non_matches_win_ties():
    queries, gallery = embeddings([[0.7, 0.7, 0.1], [0.2, 0.9, 0.9], [0.0, 0.0, 0.0]])
    assert compute_ranks(queries, gallery, torch.arange(3), torch.arange(3)).tolist() == [2, 2, 3]


def test_matches_of_a_query_do_not_compete():
    # Captions 0 and 1 are of image 0. Its best caption ranks third, after caption 2 and a tie with caption 3.
    queries, gallery = embeddings([[0.4, 0.6, 0.8, 0.6], [0.9, 0.8, 0.7, 0.6]])
    image_ids = torch.tensor([0, 0, 1, 1])
    assert compute_ranks(queries, gallery, torch.arange(2), image_ids).tolist() == [3, 3]
    # Text to image: each caption has one match among two images.
    assert compute_ranks(gallery, queries, image_ids, torch.arange(2)).tolist() == [2, 2, 2, 2]


def test_image_ids_may_come_in_any_order():
    queries, gallery = embeddings([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
    assert compute_ranks(queries, gallery, torch.tensor([5, 3]), torch.tensor([3, 5, 9])).tolist() == [1, 1]


def test_a_query_without_a_match_is_refused():
    with pytest.raises(ValueError, match="no match"):
        compute_ranks(torch.eye(2), torch.eye(2), torch.arange(2), torch.tensor([0, 0]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="no ranks"):
        compute_ranks(torch.full((2, 2), value), torch.eye(2), torch.arange(2), torch.arange(2))


def test_blocks_change_nothing(monkeypatch):
    queries = torch.randn(37, 8, dtype=torch.float64)
    gallery = torch.randn(53, 8, dtype=torch.float64)
    image_ids = torch.cat([torch.arange(37), torch.randint(0, 37, (16,))])
    ranks = compute_ranks(queries, gallery, torch.arange(37), image_ids)
    nearest = nearest_neighbors(queries, gallery, 5)
    monkeypatch.setattr(recall, "BLOCK_SIZE", 53 * 4)
    assert np.array_equal(compute_ranks(queries, gallery, torch.arange(37), image_ids), ranks)
    assert torch.equal(nearest_neighbors(queries, gallery, 5), nearest)
    assert nearest[0, 0] == (queries[0] @ gallery.T).argmax()
    assert nearest.shape == (37, 5)


def test_nearest_neighbors_by_hand():
    queries, gallery = embeddings([[0.1, 0.9, 0.5, 0.9], [0.3, 0.3, 0.3, 0.3]])
    assert nearest_neighbors(queries, gallery, 3).tolist() == [[1, 3, 2], [0, 1, 2]]  # ties by index
    assert nearest_neighbors(queries, gallery, 9).tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]


def test_nearest_neighbors_free_each_block(monkeypatch):
    """Results that share memory with their block would add up to the whole similarity matrix."""
    monkeypatch.setattr(recall, "BLOCK_SIZE", 400)
    parts = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors: parts.extend(tensors) or cat(tensors))
    assert nearest_neighbors(torch.randn(40, 4), torch.randn(200, 4), 5).shape == (40, 5)
    assert sum(part.untyped_storage().nbytes() for part in parts) == 40 * 5 * 8


def test_a_gallery_of_100_000_is_compared_in_blocks(monkeypatch):
    sizes = []
    similarity_blocks = recall._similarity_blocks

    def counted(queries, gallery):
        for first, similarities in similarity_blocks(queries, gallery):
            sizes.append(similarities.numel())
            yield first, similarities

    monkeypatch.setattr(recall, "_similarity_blocks", counted)
    vectors = torch.nn.functional.normalize(torch.randn(100_000, 4, dtype=torch.float64), dim=1)
    query_ids = torch.arange(0, 100_000, 250)
    ranks = compute_ranks(vectors[query_ids], vectors, query_ids, torch.arange(100_000))
    assert (ranks == 1).all()
    assert max(sizes) <= recall.BLOCK_SIZE
