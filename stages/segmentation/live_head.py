"""What a head's live run shows of each epoch: its metrics, and the masks of a few validation images."""

import io
from typing import Any

import numpy as np
from PIL import Image

from stages.core.live import LiveRun
from stages.data.manifest import Row, evenly_spaced
from stages.data.voc import COLOR_MAP, VOID
from stages.segmentation.dataset import ValBatch

EXAMPLES = 3  # more would be too small in MLflow's preview, which is 256 pixels wide
GAP = 4  # pixels between masks


class LiveHead:
    """Records the epochs of a head. `classes` name the values of masks; examples are picked evenly from `rows`."""

    def __init__(self, run: LiveRun, classes: tuple[str, ...], rows: tuple[Row, ...]):
        self.run = run
        self.classes = classes
        self.examples = {row.image_id for row in evenly_spaced(rows, EXAMPLES)}
        self._columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add_masks(self, batch: ValBatch, predicted: np.ndarray) -> None:
        """Keep the true and predicted masks of examples, if any are in the batch."""
        for image_id, truth, prediction in zip(batch.image_ids, batch.masks, predicted, strict=True):
            if image_id in self.examples:
                self._columns[image_id] = (truth, prediction)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Record an epoch after its evaluation; `row` is that of `train`."""
        self.run.epoch(name_classes(row, self.classes))
        columns = list(self._columns.values())
        if row["epoch"] == 1:
            # MLflow opens the series at step 0, and shows an empty box if there is no picture: the truth alone.
            self.run.image("masks", draw_masks([(truth, np.full_like(truth, VOID)) for truth, _ in columns]), 0)
        self.run.image("masks", draw_masks(columns), row["epoch"])


def name_classes(row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """An epoch's row with the IoU by class name."""
    return {**row, "iou": dict(zip(classes, row["iou"], strict=True))}


def draw_masks(columns: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A PNG in VOC's colors: true masks in the first row, predicted ones below; one column per image."""
    height = max(truth.shape[0] for truth, _ in columns)
    width = sum(truth.shape[1] + GAP for truth, _ in columns) - GAP
    canvas = np.full((2 * height + GAP, width), VOID, np.uint8)
    left = 0
    for masks in columns:
        for top, mask in zip((0, height + GAP), masks, strict=True):
            canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        left += masks[0].shape[1] + GAP
    image = Image.fromarray(canvas)
    image.putpalette(COLOR_MAP.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
