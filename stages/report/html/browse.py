"""What the page's browsing part shows: validation images with masks, captions, retrieved images and wrong labels.

The page's script reads this as JSON. Images are referred to by their index in a gallery. Of a task's runs, those of
the first seed are shown.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.images import read_mask
from stages.data.manifest import Manifest, Row, evenly_spaced
from stages.report import captioning, retrieval, segmentation
from stages.report.html.caption_score import score_captions
from stages.report.html.pictures import color_codes, embed_image, embed_mask, mask_palette
from stages.report.predictions import read_captions, read_masks, read_rows
from stages.report.results import unique_labels
from stages.report.section import Inputs
from stages.segmentation.iou import confusion, iou

# The page shall stay below 15 MB, which 1000 generated scenes with five heads' masks leave room for.
IMAGES = 1000
# Queries of a larger set: the images nearest to them are embedded too, which are up to five per query and run.
QUERIES = 100


class Gallery:
    """A data set's validation images in the page: `IMAGES` at most, spaced evenly, then those that are added."""

    def __init__(self, manifest: Manifest):
        rows = manifest.split("val")
        self.sample = evenly_spaced(rows, IMAGES)
        self.total = len(rows)
        self._rows_by_id = {row.image_id: row for row in rows}
        self._indices = {row.image_id: index for index, row in enumerate(self.sample)}

    def index(self, image_id: str) -> int:
        """The index of an image, which is added if the gallery lacks it."""
        return self._indices.setdefault(image_id, len(self._indices))

    def json(self) -> list[dict[str, Any]]:
        """Every image: its ID, its picture, and the classes in its mask."""
        return [_image_json(self._rows_by_id[image_id]) for image_id in self._indices]


@dataclass(frozen=True)
class View:
    """One task's part: what the page says of it, and what its script reads, None for a skipped task."""

    name: str
    title: str
    text: str
    images: int = 0
    total: int = 0
    data: dict[str, Any] | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Browsing:
    """All views, and the JSON that the page's script reads."""

    views: list[View]
    json: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class _Task:
    """A view's title and text, and the function that collects its data."""

    title: str
    text: str
    build: Callable[[Inputs, Gallery], tuple[int, dict[str, Any]]]


def build_browsing(inputs: Inputs) -> Browsing:
    """Collect the views of all tasks."""
    scenes = Gallery(inputs.manifest)
    labeled = Gallery(inputs.labeled)
    views = []
    for name, task in TASKS.items():
        if name in inputs.skipped:
            views.append(View(name, task.title, task.text, skipped=inputs.skipped[name]))
        else:
            gallery = labeled if name == "classification" else scenes
            count, data = task.build(inputs, gallery)
            views.append(View(name, task.title, task.text, count, gallery.total, data))
    data_by_name = {view.name: view.data for view in views if view.data}
    manifest = inputs.manifest
    galleries = {
        "scenes": scenes.json() if data_by_name.keys() - {"classification"} else [],
        "labeled": labeled.json() if "classification" in data_by_name else [],
    }
    classes = {"classes": list(manifest.classes), "colors": color_codes(manifest.classes)}
    return Browsing(views, {**classes, "labels": list(inputs.labeled.labels), **galleries, "views": data_by_name})


def _segmentation(inputs: Inputs, gallery: Gallery) -> tuple[int, dict[str, Any]]:
    """The true mask of every image, and every head's with its IoU and that of every class in either mask."""
    classes = inputs.manifest.classes
    palette = mask_palette(classes)
    rows = [row for row in gallery.sample if row.mask]
    truths = [read_mask(Path(row.mask)) for row in rows if row.mask]
    heads = inputs.results["segmentation"]
    predictions = []
    for head in heads:
        predicted = read_masks(head.predictions, [row.image_id for row in rows])
        masks = []
        for row, truth in zip(rows, truths, strict=True):
            mask = predicted[row.image_id]
            masks.append({"source": embed_mask(mask, palette), **_image_iou(truth, mask, len(classes))})
        predictions.append(masks)
    return len(rows), {
        "runs": unique_labels(heads, segmentation.head_label),
        "images": [gallery.index(row.image_id) for row in rows],
        "truths": [embed_mask(truth, palette) for truth in truths],
        "predictions": predictions,
    }


def _image_iou(truth: np.ndarray, mask: np.ndarray, classes: int) -> dict[str, Any]:
    """IoU of one image: `iou`, the mean over the classes in either mask, and `class_iou` by class index."""
    (matrix,) = confusion(truth[None], mask[None], classes)
    if not matrix.any():  # every pixel is void
        return {"iou": None, "class_iou": {}}
    result = iou(matrix)
    class_iou = {index: round(value, 1) for index, value in enumerate(result.per_class) if value is not None}
    return {"iou": round(result.mean, 1), "class_iou": class_iou}


def _captioning(inputs: Inputs, gallery: Gallery) -> tuple[int, dict[str, Any]]:
    """The reference of every image, and every cell's caption with its BLEU+1."""
    cells = inputs.results["captioning"]
    rows = gallery.sample
    references: list[str] = []
    captions = []
    for cell in cells:
        table = read_captions(cell.predictions)[cell.name, cell.run.seed]
        references = [table[row.image_id][1] for row in rows]
        texts = [table[row.image_id][0] for row in rows]
        scores = score_captions(texts, references)
        captions.append({"texts": texts, "scores": scores.round(1).tolist()})
    return len(rows), {
        "runs": unique_labels(cells, captioning.describe),
        "images": [gallery.index(row.image_id) for row in rows],
        "references": references,
        "captions": captions,
    }


def _retrieval(inputs: Inputs, gallery: Gallery) -> tuple[int, dict[str, Any]]:
    """The caption of every image, and by run its ranks and the images nearest to the caption."""
    results = [*inputs.results["retrieval"], *inputs.results["retrieval_grid"]]
    rows = gallery.sample
    if len(rows) < gallery.total:
        rows = evenly_spaced(rows, QUERIES)
    captions: list[str] = []
    ranks = []
    for result in results:
        predictions = read_rows(result.predictions, [row.image_id for row in rows])
        table = {prediction["image_id"]: prediction for prediction in predictions}
        queries = [table[row.image_id] for row in rows]
        captions = [query["caption"] for query in queries]
        ranks.append(
            {
                "text_to_image": [query["text_to_image_rank"] for query in queries],
                "image_to_text": [query["image_to_text_rank"] for query in queries],
                "nearest": [[gallery.index(image_id) for image_id in query["nearest"]] for query in queries],
            }
        )
    return len(rows), {
        "runs": unique_labels(results, retrieval.describe),
        "images": [gallery.index(row.image_id) for row in rows],
        "captions": captions,
        "ranks": ranks,
    }


def _classification(inputs: Inputs, gallery: Gallery) -> tuple[int, dict[str, Any]]:
    """The label of every image, and by setting the predicted label and both labels' probabilities in percent."""
    settings = inputs.results["classification"]
    label_indices = {name: index for index, name in enumerate(inputs.labeled.labels)}
    labels: list[int] = []
    predictions = []
    for setting in settings:
        image_ids = [row.image_id for row in gallery.sample]
        table = {row["image_id"]: row for row in read_rows(setting.predictions, image_ids)}
        images = [table[row.image_id] for row in gallery.sample]
        labels = [label_indices[image["label"]] for image in images]
        predicted = [label_indices[image["predicted"]] for image in images]
        probabilities = 100 * np.array([image["probabilities"] for image in images])
        each = np.arange(len(images))
        predictions.append(
            {
                "labels": predicted,
                "probabilities": probabilities[each, predicted].round(1).tolist(),
                "true_probabilities": probabilities[each, labels].round(1).tolist(),
            }
        )
    return len(gallery.sample), {
        "runs": [setting.name for setting in settings],
        "images": [gallery.index(row.image_id) for row in gallery.sample],
        "labels": labels,
        "predictions": predictions,
    }


TASKS = {
    "segmentation": _Task(
        "Segmentation masks",
        "Each image with its true mask and the mask of every head. IoU of an image: the mean over the classes in "
        "either mask, background included, in percent; with a class chosen, that class's IoU. White pixels of a true "
        "mask are void and not counted.",
        _segmentation,
    ),
    "captioning": _Task(
        "Captions",
        "The captions of every cell under the reference that BLEU compares them with. BLEU+1 scores a single caption: "
        "BLEU-4 with 1 added to the counts of 2- to 4-grams (Lin and Och, 2004), in percent.",
        _captioning,
    ),
    "retrieval": _Task(
        "Retrieved images",
        "A caption, its own image, and the images nearest to the caption, nearest first. Rank 1: no other image is as "
        "near to the caption (text to image), or no other caption as near to the image (image to text: the R@1 of the "
        "tables). The order is by the rank of text to image.",
        _retrieval,
    ),
    "classification": _Task(
        "Classified images",
        "Each image with its true label, the predicted label and their probabilities. Worst first: the images whose "
        "true label has the lowest probability.",
        _classification,
    ),
}


def _image_json(row: Row) -> dict[str, Any]:
    classes = np.unique(read_mask(Path(row.mask))).tolist() if row.mask else []
    return {
        "id": row.image_id,
        "source": embed_image(row),
        "width": row.width,
        "height": row.height,
        "classes": classes,
    }
