"""Predictions are read a few at a time, with the same numbers as all at once."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_mask

from stages.data.manifest import Manifest, Row
from stages.report import predictions
from stages.report.metrics import miou_metric
from stages.report.predictions import iterate_masks, read_columns, read_masks, read_rows
from stages.segmentation.iou import confusion, mean_iou_draws

IDS = [f"val_{number}" for number in range(7)]
CLASSES = 3


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Predicted masks by image ID and the path of their file, whose order is not the manifest's."""
    monkeypatch.setattr(predictions, "MASKS_PER_BATCH", 2)
    rng = np.random.default_rng(0)
    predicted = {image_id: rng.integers(0, CLASSES, (4, 5), dtype=np.uint8) for image_id in reversed(IDS)}
    columns = [list(predicted), [4] * 7, [5] * 7, [mask.tobytes() for mask in predicted.values()]]
    pq.write_table(pa.table(columns, names=["image_id", "height", "width", "mask"]), tmp_path / "run.parquet")
    return predicted, tmp_path / "run.parquet"


def test_masks_are_the_same_one_by_one(masks):
    predicted, path = masks
    pairs = list(iterate_masks(path))
    assert [image_id for image_id, _ in pairs] == list(predicted)
    assert all(np.array_equal(mask, predicted[image_id]) for image_id, mask in pairs)
    some = read_masks(path, IDS[:2])
    assert set(some) == set(IDS[:2])


def test_the_bootstrap_of_miou_is_in_the_manifests_order(masks, tmp_path):
    predicted, path = masks
    rng = np.random.default_rng(1)
    truths = {image_id: rng.integers(0, CLASSES, (4, 5), dtype=np.uint8) for image_id in IDS}
    rows = []
    for image_id, truth in truths.items():
        write_mask(tmp_path / f"{image_id}.png", truth)
        rows.append(Row(image_id, "val", "", str(tmp_path / f"{image_id}.png")))
    manifest = Manifest(tuple(rows), "folder", ("a", "b", "c"))
    run = SimpleNamespace(artifacts={"predictions": str(path)})
    matrices = [confusion(truth[None], predicted[image_id][None], CLASSES) for image_id, truth in truths.items()]
    expected = mean_iou_draws(np.concatenate(matrices), seed=3)
    assert np.array_equal(miou_metric(manifest, 3).draw_run(run), expected)


def test_rows_and_columns_of_some_images(tmp_path):
    path = tmp_path / "ranks.parquet"
    pq.write_table(pa.table({"image_id": IDS, "rank": list(range(7)), "nearest": [IDS[:2]] * 7}), path)
    assert [row["rank"] for row in read_rows(path)] == list(range(7))
    assert [(row["image_id"], row["nearest"]) for row in read_rows(path, ["val_5", "val_2"])] == [
        ("val_2", IDS[:2]),
        ("val_5", IDS[:2]),
    ]
    assert read_columns(path, "rank", "image_id") == [list(range(7)), IDS]
