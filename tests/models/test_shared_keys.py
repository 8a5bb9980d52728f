"""Rows that share an image's keys attend to them as rows with copies of the keys do."""

import pytest
import torch
from float_tolerance import assert_close
from torch.nn.functional import scaled_dot_product_attention

from stages.models.shared_keys import RowsByImage

IMAGE_OF_ROW = torch.tensor([0, 0, 2, 2, 2, 4])  # images 1 and 3 have no rows


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize(
    "rows",
    [
        RowsByImage.pack(IMAGE_OF_ROW, 5),
        RowsByImage(images=5, rows_per_image=4, slots=torch.tensor([1, 3, 8, 9, 11, 16])),
    ],
    ids=["packed", "with gaps"],
)
def test_attention_equals_attention_with_copied_keys(rows, heads):
    queries = torch.randn(6, *heads, 2, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 5, *heads, 7, 8, dtype=torch.float64)
    shared = rows.scatter(scaled_dot_product_attention(rows.gather(queries), keys, values))
    assert_close(shared, scaled_dot_product_attention(queries, keys[IMAGE_OF_ROW], values[IMAGE_OF_ROW]))


def test_scatter_undoes_gather():
    rows = RowsByImage.pack(IMAGE_OF_ROW, 5)
    assert rows.rows_per_image == 3
    for x in (torch.randn(6, 2, 8), torch.randn(6, 3, 2, 8)):
        assert rows.gather(x).shape == (5, *x.shape[1:-2], 6, 8)
        assert torch.equal(rows.scatter(rows.gather(x)), x)


def test_unsorted_rows_are_rejected():
    with pytest.raises(ValueError, match="rows must be sorted by image"):
        RowsByImage.pack(torch.tensor([0, 2, 1]), 3)
