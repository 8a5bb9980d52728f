"""The segmentation section: Table 1, the original's claims, curves and masks."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.data.images import read_mask
from stages.data.manifest import Manifest, evenly_spaced
from stages.report.claims import Claim, claim_lines
from stages.report.curves import plot_class_iou, plot_miou, write_curves
from stages.report.original import comparison_cells, comparison_table, load_original, original_number, sort_as_original
from stages.report.overlays import plot_masks
from stages.report.results import Result
from stages.report.section import FIGURES, Inputs, Section, render, select_metrics
from stages.report.tables import Table
from stages.segmentation import BOOTSTRAP
from stages.segmentation.iou import confusion, mean_iou_draws

TABLE = "table1_segmentation"
EXAMPLES = 6  # validation images with masks, per head
# Whose images the original's numbers are compared with, by profile; the default is for all others.
COMPARISONS = {"paper": "on the same images"}
OTHER_COMPARISON = "on other images"

CLAIMS = (
    Claim("The convolutional head is no better than the linear one", "convolutional", "linear", -1),
    Claim("The transformer head is far better than the linear one", "transformer", "linear", +1),
    Claim("Sharing queries and keys costs a little", "transformer_shared_qk", "transformer", -1),
)


def head_label(name: str) -> str:
    """The original's label of a head; the run's name for a head that the original does not have."""
    row = load_original()[TABLE]["rows"].get(name)
    return row[0] if row else name


def original_miou(name: str) -> float | None:
    """The mIoU that the original prints for a head."""
    return original_number([TABLE], name, [head_label(name)])


def table(heads: list[Result]) -> Table:
    """Table 1: the original's heads in its order, then all others."""
    rows = []
    for head in sort_as_original(heads, TABLE):
        comparison = comparison_cells(head.metrics, "miou", original_miou(head.run.name))
        rows.append((head_label(head.run.name), f"{head.metrics['miou']:.2f}", *comparison))
    return comparison_table("Table 1", TABLE, rows)


@cache
def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Predicted masks `(H, W)` uint8 by image ID."""
    return {
        row["image_id"]: np.frombuffer(row["mask"], np.uint8).reshape(row["height"], row["width"])
        for row in pq.read_table(path).to_pylist()
    }


def claims(heads: list[Result], truths: dict[str, np.ndarray], classes: int, seed: int) -> list[str]:
    """What the original says of these heads. `truths` are the validation images' masks by image ID."""

    @cache  # a head may be in several claims
    def miou_draws(path: Path) -> np.ndarray:
        predicted = read_predictions(path)
        matrices = [confusion(truth[None], predicted[image_id][None], classes) for image_id, truth in truths.items()]
        return mean_iou_draws(np.concatenate(matrices), seed=seed)

    def draw_differences(first: Result, second: Result) -> np.ndarray:
        # One seed resamples the same images for both heads: the differences are paired.
        return miou_draws(first.predictions) - miou_draws(second.predictions)

    originals = {head.run.name: original_miou(head.run.name) for head in heads}
    return claim_lines(CLAIMS, heads, originals, "miou", draw_differences)


def plot_head(head: Result, manifest: Manifest, truths: dict[str, np.ndarray]) -> dict[str, Path]:
    """Write the figures of one head; returns their paths by caption."""
    run = head.run
    label = head_label(run.name)
    miou, class_iou, masks = (
        FIGURES / "segmentation" / f"{run.name}_{kind}.png" for kind in ("miou", "class_iou", "masks")
    )
    plot_miou(miou, {label: run})
    plot_class_iou(class_iou, label, run)
    examples = evenly_spaced(manifest.split("val"), EXAMPLES)
    plot_masks(masks, label, examples, truths, read_predictions(head.predictions), manifest.classes)
    return {
        "Validation mIoU per epoch": miou,
        "Validation IoU of every class per epoch": class_iou,
        "Validation images with true and predicted masks; void is not painted": masks,
    }


def section(inputs: Inputs) -> Section:
    """Table 1 with its claims and figures."""
    heads = inputs.results["segmentation"]
    manifest = inputs.manifest
    seed = inputs.experiment.seed_for(BOOTSTRAP)
    truths = {row.image_id: read_mask(Path(row.mask)) for row in manifest.split("val") if row.mask}
    plot_miou(FIGURES / "segmentation/miou_per_epoch.png", {head_label(head.run.name): head.run for head in heads})
    write_curves("segmentation", heads, {"epoch": "epoch", "train_loss": "train_loss", "miou": "miou"})
    figures = [plot_head(head, manifest, truths) for head in heads]
    run = heads[0].run
    table1 = table(heads)
    text = render(
        "segmentation.md",
        run=run,
        table=table1,
        source=load_original()["source"],
        comparison=COMPARISONS.get(run.params["profile"], OTHER_COMPARISON),
        absent=sorted({name for head in heads for name in head.run.metrics["absent_classes"]}),
        claims=claims(heads, truths, len(manifest.classes), seed),
        heads=[
            {"label": head_label(head.run.name), "kernel": head.run.params.get("kernel", 1), "figures": paths}
            for head, paths in zip(heads, figures, strict=True)
        ],
    )
    metrics = select_metrics(heads, "miou", "miou_low", "miou_high", "best_miou", "best_epoch", "train_loss")
    paths_by_run = {head.run_id: list(paths.values()) for head, paths in zip(heads, figures, strict=True)}
    return Section(text, {TABLE: table1}, metrics, paths_by_run)
