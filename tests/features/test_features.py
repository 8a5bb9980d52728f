"""The feature table gives back what went in, bit for bit, and refuses what it is not."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages.core.stage import InputError
from stages.data.views import View
from stages.features.tokens import GROUP, FeatureMetadata, FeatureTable, ViewFeatures, open_feature_writer

PROVENANCE = FeatureMetadata("vit", "ab" * 32, "native size", dim=6, heads=2, patch="8x8", manifest="cd" * 32)


def rows(count, view=0):
    made = torch.Generator().manual_seed(view)
    return [
        ViewFeatures(
            f"image {index}",
            view,
            View(10 + index, 20, index, 2, 30, 40, index % 2 == 0),
            torch.randn(2 + index % 3, 3 + index % 2, 6, generator=made).half(),
        )
        for index in range(count)
    ]


def write(path, all_rows):
    """A table of one shard."""
    path.mkdir(exist_ok=True)
    with open_feature_writer(path / "00000.parquet", PROVENANCE) as writer:
        for row in all_rows:
            writer.add(row)


def test_round_trip_is_bit_for_bit_with_unlike_grids(tmp_path):
    written = rows(GROUP * 2 + 5)
    write(tmp_path / "t", written)
    table = FeatureTable(tmp_path / "t")
    read = [row for group in range(table.num_groups) for row in table.read_group(group)]
    assert len(table) == len(written) == len(read)
    for one, other in zip(written, read, strict=True):
        assert (one.image_id, one.view_index, one.view) == (other.image_id, other.view_index, other.view)
        assert one.tokens.dtype == other.tokens.dtype == torch.float16
        assert np.array_equal(one.tokens.numpy().view(np.uint16), other.tokens.numpy().view(np.uint16))
    assert table.metadata == PROVENANCE


def test_groups_never_mix_views(tmp_path):
    write(tmp_path / "t", rows(GROUP + 1, 0) + rows(3, 1))
    table = FeatureTable(tmp_path / "t")
    assert table.group_views == (0, 0, 1)
    assert [row.view_index for row in table.read_group(table.groups_for_view(1)[0])] == [1, 1, 1]


def test_a_group_is_handed_out_without_a_copy(tmp_path):
    write(tmp_path / "t", rows(4))
    first, second, *_ = FeatureTable(tmp_path / "t").read_group(0)
    assert first.tokens.untyped_storage().data_ptr() == second.tokens.untyped_storage().data_ptr()
    assert second.tokens.data_ptr() - first.tokens.data_ptr() == first.tokens.numel() * 2


def test_tokens_are_fixed_size_binary_half_floats(tmp_path):
    write(tmp_path / "t", rows(1))
    schema = pq.read_schema(tmp_path / "t/00000.parquet")
    assert schema.field("tokens").type.value_type.byte_width == 2 * PROVENANCE.dim
    assert schema.metadata[b"dtype"] == b"float16"


@pytest.mark.parametrize("key", ["backbone", "weights", "transform", "manifest"])
def test_another_provenance_is_refused_by_name(tmp_path, key):
    write(tmp_path / "t", rows(1))
    FeatureTable(tmp_path / "t", **{key: getattr(PROVENANCE, key)})
    with pytest.raises(InputError, match=f"{key} is .* expected 'other'"):
        FeatureTable(tmp_path / "t", **{key: "other"})


def test_a_broken_writer_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="torn"), open_feature_writer(tmp_path / "t.parquet", PROVENANCE) as writer:
        writer.add(rows(1)[0])
        raise RuntimeError("torn")
    assert list(tmp_path.iterdir()) == []


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, rows(40))
    assert (tmp_path / "one/00000.parquet").read_bytes() == (tmp_path / "two/00000.parquet").read_bytes()
