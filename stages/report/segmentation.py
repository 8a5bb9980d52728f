"""The segmentation section: Table 1, its comparison with the original, curves and masks."""

from pathlib import Path

from stages.data.images import read_mask
from stages.data.manifest import Manifest, evenly_spaced
from stages.params.experiment import Experiment
from stages.report.comparison import OriginalTable, Row, build_section, original_value
from stages.report.curves import plot_class_iou, plot_miou
from stages.report.numbers import format_best
from stages.report.original import load_original
from stages.report.original_settings import HEADS, list_changes
from stages.report.overlays import plot_masks
from stages.report.plots import curve_rows, write_plot
from stages.report.predictions import read_masks
from stages.report.results import Result, unique_labels
from stages.report.section import FIGURES, Inputs, Section, render
from stages.report.significance import Metric

TABLE = "table1_segmentation"
EXAMPLES = 6  # validation images with masks, per head


def head_label(head: Result) -> str:
    """The original's label of a head; the run's name for a head that the original does not have, or has otherwise."""
    row = load_original()[TABLE]["rows"].get(head.name)
    return row[0] if row and not list_changes(HEADS[head.name], head.run.params) else head.name


def build_table(heads: list[Result], metric: Metric, experiment: Experiment) -> OriginalTable:
    """Table 1; the heads that the original does not have are in its comparison only."""
    rows = []
    for head in heads:
        metrics = head.metrics
        more = {
            "Best epoch": format_best(head.frame["best_miou"], head.frame["best_epoch"]),
            "Train loss": f"{metrics['train_loss']:.3f}",
        }
        label = (head_label(head),)
        rows.append(Row(head, label, original_value(head, experiment), metric.interval(head), more))
    return OriginalTable(TABLE, rows, metric, experiment.profile, "training", left=("Head",))


def plot_head(head: Result, manifest: Manifest) -> dict[str, Path]:
    """Write the figures of one head; returns their paths by caption. IoU by class and masks are of its first seed."""
    label = head_label(head)
    miou, class_iou, masks = (
        FIGURES / "segmentation" / f"{head.name}_{kind}.png" for kind in ("miou", "class_iou", "masks")
    )
    plot_miou(miou, {label: head})
    plot_class_iou(class_iou, label, head.run)
    plot_examples(masks, label, {"prediction": head}, manifest)
    return {
        "Validation mIoU per epoch": miou,
        "Validation IoU of every class per epoch": class_iou,
        "Validation images with true and predicted masks; void is not painted": masks,
    }


def plot_examples(path: Path, label: str, results: dict[str, Result], manifest: Manifest) -> None:
    """Validation images with their true masks and those that results predict, by title; of the first seeds."""
    examples = evenly_spaced(manifest.split("val"), EXAMPLES)
    image_ids = [row.image_id for row in examples]
    truths = {row.image_id: read_mask(Path(row.mask)) for row in examples if row.mask}
    predictions = {title: read_masks(result.predictions, image_ids) for title, result in results.items()}
    plot_masks(path, label, examples, truths, predictions, manifest.classes)


def section(inputs: Inputs, metrics: dict[str, Metric]) -> Section:
    """Table 1, its comparison and figures."""
    heads = inputs.results["segmentation"]
    table = build_table(heads, metrics["segmentation"], inputs.experiment)
    labels = unique_labels(heads, head_label)
    plot_miou(FIGURES / "segmentation/miou_per_epoch.png", dict(zip(labels, heads, strict=True)))
    write_plot("segmentation", curve_rows(heads, {"train_loss": "train_loss", "miou": "miou"}))
    figures = [plot_head(head, inputs.manifest) for head in heads]
    text = render(
        "segmentation.md",
        run=heads[0].run,
        table=table,
        absent=sorted({name for head in heads for name in head.run.details["absent_classes"]}),
        heads=[
            {"label": label, "kernel": head.run.params.get("kernel", 1), "figures": paths}
            for label, head, paths in zip(labels, heads, figures, strict=True)
        ],
    )
    paths_by_run = {head.run_id: list(paths.values()) for head, paths in zip(heads, figures, strict=True)}
    return build_section(text, [table], paths_by_run)
