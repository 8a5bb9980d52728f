"""The segmentation section: Table 1, what the report said of it, curves and masks."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.core.atomic import write_text
from stages.core.runs import Run
from stages.data.images import read_mask
from stages.data.manifest import Manifest, evenly_spaced
from stages.params.model_source import display_name
from stages.report import curves
from stages.report.claims import Claim, answerable
from stages.report.numbers import beside
from stages.report.original import load_original
from stages.report.overlays import draw_masks
from stages.report.results import Result
from stages.report.section import CURVES, FIGURES, Section, image
from stages.report.tables import Table
from stages.segmentation.iou import confusion, mean_iou_draws

PICTURES = 6  # validation images shown for every head
TABLE = "table1_segmentation"


@dataclass(frozen=True)
class Head:
    """A head's run, its label in the table, and its metrics as the MLflow store (or else the record) has them."""

    label: str
    run: Run
    metrics: dict[str, float]

    @property
    def reported(self) -> float | None:
        """What the report prints for this head."""
        row = load_original()[TABLE]["rows"].get(self.run.name)
        return row[1] if row else None


def head_label(name: str) -> str:
    """The report's label of a head, or its own name where the report has none."""
    row = load_original()[TABLE]["rows"].get(name)
    return row[0] if row else name


def table(heads: list[Head]) -> Table:
    """Table 1: the report's heads in its order, then any others."""
    order = list(load_original()[TABLE]["rows"])
    ranked = sorted(heads, key=lambda head: order.index(head.run.name) if head.run.name in order else len(order))
    columns = (*load_original()[TABLE]["columns"], "95 % interval", "Report", "Difference")
    return Table(f"Table 1. {load_original()[TABLE]['caption']}", columns, tuple(_row(head) for head in ranked))


def _row(head: Head) -> tuple[str, ...]:
    miou = head.metrics["miou"]
    between = f"{head.metrics['miou_low']:.2f} to {head.metrics['miou_high']:.2f}"
    return (head.label, f"{miou:.2f}", between, *beside(miou, head.reported))


CLAIMS = (
    Claim("The convolutional head is no better than the linear one", "convolutional", "linear", -1),
    Claim("The transformer head is far better than the linear one", "transformer", "linear", +1),
    Claim("Sharing queries and keys costs a little", "transformer_shared_qk", "transformer", -1),
)


def claims(heads: list[Head], manifest: Manifest, seed: int) -> list[str]:
    """What the report says of these heads."""
    by_name, lines = {head.run.name: head for head in heads}, []
    truths = {row.image_id: read_mask(Path(row.mask)) for row in manifest.split("val")}
    named = [head for head in heads if any(head.run.name in (claim.first, claim.second) for claim in CLAIMS)]
    draws = {head.run.name: _draws(head, truths, len(manifest.classes), seed) for head in named}
    for claim in answerable(CLAIMS, by_name):
        first, second = by_name[claim.first], by_name[claim.second]
        found = first.metrics["miou"] - second.metrics["miou"]
        lines.append(claim.line(first.reported - second.reported, found, draws[claim.first] - draws[claim.second]))
    return lines


def _draws(head: Head, truths: dict[str, np.ndarray], classes: int, seed: int) -> np.ndarray:
    """Bootstrap draws of a head's mIoU, from its predictions; one seed draws the same images for all heads."""
    predicted = read_predictions(Path(head.run.artifacts["predictions"]))
    counted = [confusion(truth[None], predicted[image_id][None], classes) for image_id, truth in truths.items()]
    return mean_iou_draws(np.concatenate(counted), seed=seed)


def draw(folder: Path, heads: list[Head], manifest: Manifest) -> dict[str, list[Path]]:
    """All figures of the section; returns each head's files by name, and the overview's under an empty name."""
    shown = evenly_spaced(manifest.split("val"), PICTURES)
    overview = folder / "miou_per_epoch.png"
    curves.draw_miou(overview, {head.label: head.run for head in heads})
    files = {"": [overview]}
    for head in heads:
        paths = [folder / f"{head.run.name}_{kind}.png" for kind in ("miou", "class_iou", "masks")]
        curves.draw_miou(paths[0], {head.label: head.run})
        curves.draw_class_iou(paths[1], head.label, head.run)
        masks = read_predictions(Path(head.run.artifacts["predictions"]))
        draw_masks(paths[2], head.label, shown, masks, manifest.classes)
        files[head.run.name] = paths
    return files


@cache
def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Predicted masks `(H, W)` uint8 by image id."""
    return {
        row["image_id"]: np.frombuffer(row["mask"], np.uint8).reshape(row["height"], row["width"])
        for row in pq.read_table(path).to_pylist()
    }


def write_curves(folder: Path, heads: list[Head]) -> None:
    """Per-epoch figures as CSV, a file a head, for `dvc plots`."""
    for head in heads:
        lines = [
            "epoch,train_loss,miou",
            *(f"{row['epoch']},{row['train_loss']},{row['miou']}" for row in head.run.history),
        ]
        write_text(folder / f"{head.run.name}.csv", "\n".join(lines) + "\n")


def section(results: list[Result], manifest: Manifest, seed: int) -> Section:
    """Table 1 with what belongs to it."""
    heads = [Head(head_label(one.run.name), one.run, one.metrics) for one in results]
    figures = draw(FIGURES / "segmentation", heads, manifest)
    write_curves(CURVES / "segmentation", heads)
    lines = _lines(heads, claims(heads, manifest, seed), figures)
    by_run = {head.run.identity: figures[head.run.name] for head in heads}
    return Section(lines, {TABLE: table(heads)}, metrics(heads), by_run)


def _lines(heads: list[Head], stated: list[str], figures: dict[str, list[Path]]) -> list[str]:
    """The section in markdown, with the `claims` as `stated`."""
    asked = heads[0].run.params
    absent = sorted({name for head in heads for name in head.run.metrics["absent_classes"]})
    lines = [
        "## Segmentation",
        "",
        f"Heads on frozen `{display_name(heads[0].run.inputs['backbone'])}` patch tokens, {asked['epochs']} epochs of "
        f"{asked['views']} cached views (epoch e sees view e mod {asked['views']}), AdamW, learning rate "
        f"{asked['lr']:g} falling linearly to 0, weight decay {asked['weight_decay']:g}, batch {asked['batch']}.",
        "",
        table(heads).markdown(),
        "",
        "mIoU in percent after the last epoch, from intersections and unions summed over the validation set at native "
        "size; pixels labeled 255 (void) are not counted. The interval is a bootstrap over validation images; it does "
        "not hold the randomness of training. *Report* is the number printed in "
        f"{load_original()['source']}; *Difference* is ours minus the report's, "
        + ("on other images and another backbone." if asked["profile"] != "paper" else "on the same images."),
        "",
    ]
    if absent:
        lines += [f"In neither truth nor prediction, and left out of the mean: {', '.join(absent)}.", ""]
    if stated:
        lines += ["What the report says of these heads:", "", *stated, ""]
    lines += [image("Validation mIoU per epoch, all heads", figures[""][0]), ""]
    for head in heads:
        miou, class_iou, masks = figures[head.run.name]
        lines += [f"### {head.label}", "", *_unpadded(head)]
        lines += _figure("(a) Validation mIoU per epoch", head, miou)
        lines += _figure("(b) Validation IoU of every class per epoch", head, class_iou)
        lines += _figure("(c) Validation images with true and predicted masks; void is not painted", head, masks)
    return lines


def _unpadded(head: Head) -> list[str]:
    """What an unpadded kernel does to the masks, where a head has one."""
    kernel = head.run.params.get("kernel", 1)
    if kernel == 1:
        return []
    return [
        f"The unpadded {kernel}x{kernel} convolution leaves {kernel - 1} rows and columns fewer than the grid of patch "
        "tokens has, and what is left is stretched over the whole image: masks move outwards from its middle, the more "
        "the coarser the grid is.",
        "",
    ]


def _figure(caption: str, head: Head, path: Path) -> list[str]:
    return [caption, "", image(f"{head.label}: {caption[4:]}", path), ""]


def metrics(heads: list[Head]) -> dict[str, dict]:
    """Final metrics of every head, for `dvc metrics`."""
    kept = ("miou", "miou_low", "miou_high", "best_miou", "best_epoch", "train_loss")
    return {head.run.name: {key: head.metrics[key] for key in kept} for head in heads}
