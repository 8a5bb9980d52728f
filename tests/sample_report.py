"""A small report whose names of classes, runs and captions are as hard to write into a page as can be."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import ROOT
from PIL import Image

from stages.core.runs import Run
from stages.data.manifest import Manifest, Row
from stages.data.voc import VOID, save_mask
from stages.params.experiment import load_experiment
from stages.report.results import Result
from stages.report.section import Inputs
from stages.report.significance import Metric
from stages.report.tables import Table

CLASSES = ("background", '<script>alert("class")</script>', "a|b 'quoted'", "two\nlines")
LABELS = ("<b>bold</b>", "cat & dog")
HEADS = ("linear", '"><img src=x onerror=alert(1)>')
SETTINGS = ("base", "a|b <i>setting</i>")
CAPTION = 'a "red" </script><script>alert(2)</script> ring\non | sand'
SCENES = 12
OBJECTS = 8
HEIGHT, WIDTH = 20, 24


@dataclass(frozen=True)
class WithoutDraws(Metric):
    """A metric whose interval is one point to each side of the mean."""

    def interval(self, result):
        mean = result.metrics[self.key]
        return mean - 1, mean + 1


def metric(key):
    return WithoutDraws(key, key, lambda run: np.full(10, run.metrics[key]), seed=1)


def write_report(folder: Path) -> tuple[str, Inputs]:
    """Write images, predictions and a figure below `folder`, the working directory; returns page and inputs."""
    scenes = _write_scenes(folder)
    objects = _write_objects(folder)
    results = {
        "segmentation": [_head(folder, index, name, scenes) for index, name in enumerate(HEADS)],
        "captioning": _cells(folder, scenes),
        "retrieval": [_retrieval(folder, "retrieval", "provided", 1, scenes)],
        "retrieval_grid": [_retrieval(folder, "retrieval_grid", "mine", 3, scenes, lr=1e-3)],
        "classification": [_setting(folder, index, name, objects) for index, name in enumerate(SETTINGS)],
    }
    inputs = Inputs(results, {}, scenes, objects, load_experiment(ROOT / "params.yaml"))
    return _page(folder), inputs


def _page(folder: Path) -> str:
    figure = folder / "reports/figures/curve.png"
    figure.parent.mkdir(parents=True)
    pixels = np.full((300, 400, 3), 255, np.uint8)
    pixels[100:200, 50:350] = (200, 30, 30)
    Image.fromarray(pixels).save(figure, dpi=(130, 130))
    rows = (
        ("linear", "9.50*", "-"),
        (HEADS[1], "10.25", "+1.5"),
        (CLASSES[1], "-", "2 to 3"),
        (CLASSES[2], "1e-3", "over 94"),
    )
    table = Table.from_rows("Table 1. Scores (* is the highest)", ("Head", "Score", "Original"), rows)
    return f"""# A report

Made from `runs`.

## Segmentation of {CLASSES[1]}

{table.markdown()}

(a) Score per epoch

![linear: Score per epoch](figures/curve.png)

### Details

A line with ![an image elsewhere](https://example.com/x.png) in it, and <img src=x onerror=alert(3)>.

---

Packages: none.
"""


def _image(folder: Path, image_id: str, shade: int) -> Path:
    path = folder / f"data/images/{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    pixels[5:15, 5:15] = (255 - shade, 80, 40)
    Image.fromarray(pixels).save(path)
    return path


def _mask(index: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 5:15] = 1 + index % 3
    mask[0] = VOID
    return mask


def _write_scenes(folder: Path) -> Manifest:
    rows = []
    for index in range(SCENES):
        image_id = f"scene_{index:02d}"
        mask_path = folder / f"data/masks/{image_id}.png"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(_mask(index), mask_path)
        image = _image(folder, image_id, 10 * index)
        rows.append(Row(image_id, "val", str(image), str(mask_path), (CAPTION,), None, HEIGHT, WIDTH))
    return Manifest(tuple(rows), "scenes", CLASSES)


def _write_objects(folder: Path) -> Manifest:
    rows = []
    for index in range(OBJECTS):
        image_id = f"object_{index}"
        image = _image(folder, image_id, 200 - 10 * index)
        rows.append(Row(image_id, "val", str(image), label=index % 2, height=HEIGHT, width=WIDTH))
    return Manifest(tuple(rows), "objects", CLASSES, LABELS)


def _result(task: str, name: str, predictions: Path, seeds=(None,), metrics=None, params=None, **fields) -> Result:
    metrics = metrics or {}
    runs = tuple(
        Run(task, name, task, params or {}, metrics, artifacts={"predictions": str(predictions)}, seed=seed, **fields)
        for seed in seeds
    )
    return Result(runs, pd.DataFrame([metrics] * len(runs)), (None,) * len(runs))


def _write(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / f"data/predictions/{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _head(folder: Path, index: int, name: str, scenes: Manifest) -> Result:
    """The first head's masks move away from the truth by a pixel per image, the second's are all right."""
    rows = []
    for position, row in enumerate(scenes.rows):
        mask = np.where(_mask(position) == VOID, 0, _mask(position)).astype(np.uint8)
        moved = np.roll(mask, position if index == 0 else 0, axis=1)
        rows.append({"image_id": row.image_id, "height": HEIGHT, "width": WIDTH, "mask": moved.tobytes()})
    iou = {class_name: 90.0 - 10 * number for number, class_name in enumerate(CLASSES)} | {CLASSES[3]: None}
    history = [{"epoch": 1, "miou": 80.0, "iou": iou}]
    predictions = _write(folder, f"segmentation-{index}", rows)
    return _result(
        "segmentation", name, predictions, (1, 2), {"miou": 80.0}, history=history, params={"kind": "linear"}
    )


def _cells(folder: Path, scenes: Manifest) -> list[Result]:
    """Greedy captions equal the reference; sampled ones differ by seed, and get shorter."""
    rows = []
    for position, row in enumerate(scenes.rows):
        words = CAPTION.split()
        captions = [("greedy", None, CAPTION), ("sampled", 2, "of seed 2")]
        captions.append(("sampled", 1, " ".join(words[: len(words) - position % len(words)])))
        for cell, seed, caption in captions:
            rows.append(
                {"cell": cell, "seed": seed, "image_id": row.image_id, "caption": caption, "reference": CAPTION}
            )
    path = _write(folder, "captions", rows)
    greedy = {"type": "greedy", "prompt": "a <u>picture</u> of"}
    sampled = {"type": "top_k", "k": 5, "temperature": 0.5, "prompt": 'with "quotes" | and\nlines'}
    return [
        _result("captioning", "greedy", path, params=greedy),
        _result("captioning", "sampled", path, (1, 2), params=sampled),
    ]


def _retrieval(folder: Path, task: str, name: str, step: int, scenes: Manifest, **params) -> Result:
    """A caption's nearest image is `step - 1` images after its own; the own image's rank is `step`."""
    ids = [row.image_id for row in scenes.rows]
    rows = []
    for position, image_id in enumerate(ids):
        nearest = [ids[(position + step - 1 - offset) % len(ids)] for offset in range(5)]
        ranks = {"image_to_text_rank": position + 1, "text_to_image_rank": step if position else 7}
        rows.append({"image_id": image_id, "caption": CAPTION, **ranks, "nearest": nearest})
    recipe = {"init": "scratch", "weight_decay": 0.0, "temperature": 0.1, "epochs": 2} | params
    return _result(task, name, _write(folder, f"{task}-{name}", rows), params=recipe)


def _setting(folder: Path, index: int, name: str, objects: Manifest) -> Result:
    """The first setting misclassifies the first two images, the other none."""
    rows = []
    for position, row in enumerate(objects.rows):
        is_wrong = index == 0 and position < 2
        predicted = 1 - row.label if is_wrong else row.label
        sure = 0.6 + 0.04 * position
        probabilities = [sure if label == predicted else 1 - sure for label in range(len(LABELS))]
        rows.append(
            {
                "image_id": row.image_id,
                "label": LABELS[row.label],
                "predicted": LABELS[predicted],
                "probabilities": probabilities,
            }
        )
    return _result("classification", name, _write(folder, f"classification-{index}", rows), (1,))
