"""Ranks and recall by hand."""

import numpy as np
import pytest
import torch

from stages.retrieval import recall
from stages.retrieval.recall import compute_ranks, nearest_neighbors, recall_summary


def identity(similar):
    """Embeddings whose dot products are the rows of `similar`: queries are its rows, the gallery the unit vectors."""
    similar = torch.tensor(similar, dtype=torch.float32)
    return similar, torch.eye(similar.shape[1])


def test_ranks_by_hand_and_every_k_differs():
    queries = torch.zeros(4, 12)
    for row, better in enumerate((0, 3, 7, 11)):  # how many wrong ones are nearer
        queries[row, row] = 0.5
        queries[row, [place for place in range(12) if place != row][:better]] = 0.9
    found = compute_ranks(queries, torch.eye(12), torch.arange(4), torch.arange(12))
    assert found.tolist() == [1, 4, 8, 12]
    assert recall_summary(found) == {
        "r_at_1": 25.0,
        "r_at_5": 50.0,
        "r_at_10": 75.0,
        "median_rank": 6.0,
        "mean_rank": 6.25,
    }


def test_ties_count_against_us():
    queries, gallery = identity([[0.7, 0.7, 0.1], [0.2, 0.9, 0.9], [0.0, 0.0, 0.0]])
    assert compute_ranks(queries, gallery, torch.arange(3), torch.arange(3)).tolist() == [2, 2, 3]


def test_two_captions_of_one_image_never_stand_in_each_others_way():
    # Captions 0 and 1 are image 0's. Image 0: the best of its own is the third nearest, after caption 2 and a tie.
    queries, gallery = identity([[0.4, 0.6, 0.8, 0.6], [0.9, 0.8, 0.7, 0.6]])
    owners = torch.tensor([0, 0, 1, 1])
    assert compute_ranks(queries, gallery, torch.arange(2), owners).tolist() == [3, 3]
    # Text to image: each caption looks for its own image among two.
    assert compute_ranks(gallery, queries, owners, torch.arange(2)).tolist() == [2, 2, 2, 2]


def test_owners_in_any_order():
    queries, gallery = identity([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
    assert compute_ranks(queries, gallery, torch.tensor([5, 3]), torch.tensor([3, 5, 9])).tolist() == [1, 1]


def test_a_query_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="no right answer"):
        compute_ranks(torch.eye(2), torch.eye(2), torch.arange(2), torch.tensor([0, 0]))


def test_embeddings_that_are_no_numbers_are_refused():
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no ranks"):
            compute_ranks(torch.full((2, 2), broken), torch.eye(2), torch.arange(2), torch.arange(2))


def test_the_nearest_keep_no_more_than_is_asked(monkeypatch):
    monkeypatch.setattr(recall, "CELLS", 400)
    kept = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: kept.extend(parts) or cat(parts))
    assert nearest_neighbors(torch.randn(40, 4), torch.randn(200, 4), 5).shape == (40, 5)
    assert sum(part.untyped_storage().nbytes() for part in kept) == 40 * 5 * 8


def test_blocks_change_nothing(monkeypatch):
    queries, gallery = torch.randn(37, 8), torch.randn(53, 8)
    owners = torch.randint(0, 37, (53,))
    owners[:37] = torch.arange(37)
    whole = compute_ranks(queries, gallery, torch.arange(37), owners)
    places = nearest_neighbors(queries, gallery, 5)
    monkeypatch.setattr(recall, "CELLS", 53 * 4)
    assert np.array_equal(compute_ranks(queries, gallery, torch.arange(37), owners), whole)
    assert torch.equal(nearest_neighbors(queries, gallery, 5), places)
    assert places[0, 0] == (queries[0] @ gallery.T).argmax()
    assert places.shape == (37, 5)


def test_a_gallery_of_100_000_is_held_in_blocks(monkeypatch):
    sizes = []
    blocks = recall._blocks

    def seen(queries, gallery):
        for first, similar in blocks(queries, gallery):
            sizes.append(similar.numel())
            yield first, similar

    monkeypatch.setattr(recall, "_blocks", seen)
    vectors = torch.nn.functional.normalize(torch.randn(100_000, 4), dim=1)
    some = torch.arange(0, 100_000, 250)
    found = compute_ranks(vectors[some], vectors, some, torch.arange(100_000))
    assert (found == 1).all()
    assert max(sizes) <= recall.CELLS
