"""Feature tables return what was written, bit for bit, and refuse features of other settings."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from stages.core.stage import InputError
from stages.data.views import View
from stages.features.tokens import GROUP, FeatureMetadata, FeatureTable, ViewFeatures, open_feature_writer
from stages.features.vectors import Vectors, read_vectors, write_vectors

METADATA = FeatureMetadata("vit", "ab" * 32, "native size", dim=6, heads=2, patch="8x8", manifest="cd" * 32)


def random_rows(count, view=0):
    rng = torch.Generator().manual_seed(view)
    return [
        ViewFeatures(
            f"image {index}",
            view,
            View(10 + index, 20, index, 2, 30, 40, index % 2 == 0),
            torch.randn(2 + index % 3, 3 + index % 2, 6, generator=rng).half(),
        )
        for index in range(count)
    ]


def write_shard(path, rows, metadata=METADATA):
    path.parent.mkdir(exist_ok=True)
    with open_feature_writer(path, metadata) as writer:
        for row in rows:
            writer.add(row)


def write_table(path, rows):
    write_shard(path / "00000.parquet", rows)
    return FeatureTable(path)


def test_round_trip_is_bit_for_bit_for_different_grids(tmp_path):
    rows = random_rows(GROUP * 2 + 5)
    table = write_table(tmp_path / "t", rows)
    read = [row for group in range(table.num_groups) for row in table.read_group(group)]
    assert len(table) == len(rows) == len(read)
    for expected, row in zip(rows, read, strict=True):
        assert (row.image_id, row.view_index, row.view) == (expected.image_id, expected.view_index, expected.view)
        assert row.tokens.dtype == torch.float16
        assert torch.equal(row.tokens, expected.tokens)
    assert table.metadata == METADATA


def test_groups_never_mix_views(tmp_path):
    table = write_table(tmp_path / "t", random_rows(GROUP + 1, 0) + random_rows(3, 1))
    assert table.group_views == (0, 0, 1)
    assert [row.view_index for row in table.read_group(table.groups_for_view(1)[0])] == [1, 1, 1]


def test_batches_have_one_grid_shape_and_keep_the_order(tmp_path):
    rows = sorted(random_rows(GROUP + 8), key=lambda row: row.tokens.shape)
    batches = list(write_table(tmp_path / "t", rows).batches(5))
    assert [row.image_id for batch in batches for row in batch] == [row.image_id for row in rows]
    assert all(len({row.tokens.shape for row in batch}) == 1 for batch in batches)
    assert max(len(batch) for batch in batches) == 5


def test_a_group_is_read_without_a_copy(tmp_path):
    first, second, *_ = write_table(tmp_path / "t", random_rows(4)).read_group(0)
    assert first.tokens.untyped_storage().data_ptr() == second.tokens.untyped_storage().data_ptr()
    assert second.tokens.data_ptr() - first.tokens.data_ptr() == first.tokens.numel() * 2


def test_tokens_are_fixed_size_binary_half_floats(tmp_path):
    write_table(tmp_path / "t", random_rows(1))
    schema = pq.read_schema(tmp_path / "t/00000.parquet")
    assert schema.field("tokens").type.value_type.byte_width == 2 * METADATA.dim
    assert schema.metadata[b"dtype"] == b"float16"


@pytest.mark.parametrize("key", ["backbone", "weights", "transform", "manifest"])
def test_a_table_with_unexpected_metadata_is_refused_by_key(tmp_path, key):
    write_table(tmp_path / "t", random_rows(1))
    FeatureTable(tmp_path / "t", **{key: getattr(METADATA, key)})
    with pytest.raises(InputError, match=f"{key} is .* expected 'other'"):
        FeatureTable(tmp_path / "t", **{key: "other"})


def test_shards_of_different_settings_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no features here"):
        FeatureTable(tmp_path / "t")
    write_shard(tmp_path / "t/00000.parquet", random_rows(1))
    write_shard(tmp_path / "t/00001.parquet", random_rows(1), replace(METADATA, weights="other"))
    with pytest.raises(InputError, match="shards were extracted with different settings"):
        FeatureTable(tmp_path / "t")


def test_a_failed_writer_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="failed"), open_feature_writer(tmp_path / "t.parquet", METADATA) as writer:
        writer.add(random_rows(1)[0])
        raise RuntimeError("failed")
    assert list(tmp_path.iterdir()) == []


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        write_table(tmp_path / name, random_rows(40))
    assert (tmp_path / "first/00000.parquet").read_bytes() == (tmp_path / "second/00000.parquet").read_bytes()


# Damaged files


def flipped(content, index):
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


def read_all(folder):
    table = FeatureTable(folder)
    for group in range(table.num_groups):
        table.read_group(group)
    assert table.group_views
    assert table.smallest_grid


def test_a_flipped_byte_of_tokens_is_refused_when_it_is_read(tmp_path):
    rows = random_rows(4)
    write_table(tmp_path / "t", rows)
    path = tmp_path / "t/00000.parquet"
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(rows[1].tokens.numpy().tobytes()) + 3))
    with pytest.raises(InputError) as error_info:
        read_all(tmp_path / "t")
    assert str(error_info.value).startswith(f"{path} is damaged: ")
    assert "CRC" in str(error_info.value)
    assert "\n" not in str(error_info.value)


def test_any_flipped_byte_leaves_the_same_rows_or_an_input_error(tmp_path):
    """Footer and page headers have no checksum: damage there may be harmless, but raises nothing else."""
    rows = random_rows(2)
    table = write_table(tmp_path / "t", rows)
    path = tmp_path / "t/00000.parquet"
    content = path.read_bytes()
    for index in range(0, len(content), 7):
        path.write_bytes(flipped(content, index))
        try:
            table = FeatureTable(tmp_path / "t")
            read = [row for group in range(table.num_groups) for row in table.read_group(group)]
        except InputError as error:
            assert str(error).startswith(f"{path} is damaged: ")
            continue
        for expected, row in zip(rows, read, strict=True):
            assert (row.image_id, row.view_index, row.view) == (expected.image_id, expected.view_index, expected.view)
            assert torch.equal(row.tokens, expected.tokens)


@pytest.mark.parametrize("content", [b"", b"garbage" * 99])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    write_table(tmp_path / "t", random_rows(2))
    (tmp_path / "t/00000.parquet").write_bytes(content)
    with pytest.raises(InputError, match="00000.parquet is damaged: .*; delete it and run `dvc repro`"):
        FeatureTable(tmp_path / "t")


def test_metadata_without_heads_is_refused(tmp_path):
    write_shard(tmp_path / "t/00000.parquet", random_rows(2), replace(METADATA, heads=0))
    with pytest.raises(InputError, match="its metadata says heads 0"):
        FeatureTable(tmp_path / "t")


def test_a_damaged_vector_table_is_refused(tmp_path):
    path = tmp_path / "v.parquet"
    values = torch.randn(5, 4).half()
    write_vectors(path, Vectors(list("abcde"), [0] * 5, values, {"backbone": "blip"}))
    assert torch.equal(read_vectors(path, backbone="blip").values, values)
    content = path.read_bytes()
    for damaged in (flipped(content, content.index(values.numpy().tobytes()) + 3), content[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="v.parquet is damaged: "):
            read_vectors(path)
