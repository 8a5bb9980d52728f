"""The classification section: the table, the original's claims, accuracy per epoch, confusions and mistakes."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.core.bootstrap import bootstrap_means
from stages.data.manifest import Manifest
from stages.params.classification import Setting
from stages.params.model_source import display_name
from stages.report.claims import Claim, claim_lines
from stages.report.confusion_matrix import plot_confusion_matrix
from stages.report.contact_sheets import plot_mistakes
from stages.report.curves import plot_accuracy, write_curves
from stages.report.numbers import format_interval, format_scientific
from stages.report.original import load_original, sort_as_original
from stages.report.results import Result
from stages.report.section import FIGURES, Section, image, select_metrics
from stages.report.tables import Table

TABLE = "classification"

# The settings of the original's rows. `lr` and `size` are names here: each profile's ViT has its own values for them.
ORIGINAL_SETTINGS = {
    "base": {"lr": "base", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "high_lr": {"lr": "high", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "augmented": {"lr": "base", "augment": True, "size": "large", "accumulate": 1, "epochs": 5},
    "accumulated": {"lr": "base", "augment": True, "size": "large", "accumulate": 15, "epochs": 5},
}

CLAIMS = (
    Claim("With a learning rate far too high, accuracy collapses", "high_lr", "base", -1, "-86"),
    Claim("Augmentation on larger images adds a little", "augmented", "base", +1, "+2 to +3"),
    Claim("Accumulating gradients over 15 steps adds more", "accumulated", "augmented", +1, "more than +2"),
)

LEARNED_LOSS = 0.5  # training loss (nats) below which a setting counts as trained


def original_row(name: str, settings: dict[str, Setting]) -> list | None:
    """The original's label and accuracy of a row; None if the row has other settings than the original's."""
    setting = settings[name].model_dump(exclude={"batch_size"})  # the original does not tell its batch size
    return load_original()[TABLE]["rows"][name] if ORIGINAL_SETTINGS.get(name) == setting else None


def table(results: list[Result], settings: dict[str, Setting]) -> Table:
    """The original's rows in its order, then all others."""
    original = load_original()[TABLE]
    label, accuracy = original["columns"]
    columns = (
        label,
        "Learning Rate",
        "Input",
        "Effective batch size",
        "Steps",
        "Train loss",
        accuracy,
        "95 % interval",
        "Best epoch",
        "Original",
        "Difference",
    )
    rows = [_row(result, original_row(result.run.name, settings)) for result in sort_as_original(results, TABLE)]
    return Table(f"Classification. {original['caption']}", columns, tuple(rows))


def _row(result: Result, original: list | None) -> tuple[str, ...]:
    params = result.run.params
    metrics = result.metrics
    # The original states some accuracies in words, such as "over 94".
    label, accuracy = original or (result.run.name, None)
    size = f"{params['size']}x{params['size']}"
    return (
        label,
        format_scientific(params["lr"]),
        f"{size}, augmented" if params["augment"] else size,
        str(effective_batch_size(result)),
        str(metrics["steps"]),
        f"{metrics['train_loss']:.2f}",
        f"{metrics['accuracy']:.2f}",
        format_interval(metrics, "accuracy"),
        f"{metrics['best_accuracy']:.2f} ({metrics['best_epoch']})",
        "-" if accuracy is None else str(accuracy),
        f"{metrics['accuracy'] - accuracy:+.2f}" if isinstance(accuracy, int | float) else "-",
    )


def effective_batch_size(result: Result) -> int:
    """Images per optimizer step."""
    return result.run.params["batch_size"] * result.run.params["accumulate"]


@cache
def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Every validation image's label, the predicted one, and all probabilities."""
    return pq.read_table(path).to_pylist()


def claims(results: list[Result], settings: dict[str, Setting], seed: int) -> list[str]:
    """What the original says of these settings."""

    def hits(result: Result) -> np.ndarray:
        """100 for every image whose label is predicted, else 0."""
        return np.array([100.0 * (row["predicted"] == row["label"]) for row in read_predictions(result.predictions)])

    def draw_differences(first: Result, second: Result) -> np.ndarray:
        return bootstrap_means(hits(first) - hits(second), seed=seed)

    rows = {result.run.name: original_row(result.run.name, settings) for result in results}
    originals = {name: row[1] if row else None for name, row in rows.items()}
    return claim_lines(CLAIMS, results, originals, "accuracy", draw_differences)


def still_learning(results: list[Result]) -> list[str]:
    """Which settings were still learning when their training ended, if any."""
    settings = [
        f"`{result.run.name}`, training loss {result.metrics['train_loss']:.2f} after {result.metrics['steps']} steps "
        f"of {effective_batch_size(result)} images"
        for result in results
        if _is_learning(result)
    ]
    return [f"Still learning at the end: {'; '.join(settings)}.", ""] if settings else []


def _is_learning(result: Result) -> bool:
    """Whether the training loss fell in the last epoch, and lies between a trained model's and a random guess's."""
    losses = [epoch["train_loss"] for epoch in result.run.history]
    random_guess = math.log(len(result.run.metrics["confusion"]))
    return len(losses) > 1 and LEARNED_LOSS < losses[-1] < min(losses[-2], random_guess)


def section(results: list[Result], manifest: Manifest, settings: dict[str, Setting], seed: int) -> Section:
    """The table with its claims and figures."""
    accuracy_figure, confusion_figure, mistakes_figure = (
        FIGURES / "classification" / f"{name}.png" for name in ("accuracy_per_epoch", "confusion", "mistakes")
    )
    plot_accuracy(accuracy_figure, results)
    best = max(results, key=lambda result: result.metrics["accuracy"])
    plot_confusion_matrix(confusion_figure, best, manifest.labels)
    wrong = plot_mistakes(mistakes_figure, best.run.name, manifest.split("val"), read_predictions(best.predictions))
    keys = ("epoch", "train_loss", "val_loss", "accuracy")
    write_curves("classification", results, dict(zip(keys, keys, strict=True)))
    summary = table(results, settings)
    run = best.run
    untrained = run.metrics["untrained_labels"]
    lines = [
        "## Classification",
        "",
        f"`{display_name(run.inputs['backbone'])}` with a new classification layer, fully fine-tuned with Adam on "
        f"{run.inputs['train_images']} images of {len(manifest.labels)} labels from `{run.inputs['source']}`; "
        f"accuracy on {best.metrics['images']} validation images.",
        "",
        summary.markdown(),
        "",
        "Accuracy in percent after the last epoch, with Wilson's interval for a proportion; it does not include the "
        "randomness of training. *Best epoch* is the highest accuracy and its epoch, chosen on the validation images "
        f"themselves. *Original* is what {load_original()[TABLE]['source']}, states for its own learning rates. Batch "
        "norm, if the ViT has any, keeps its pretrained statistics, so that accumulated steps equal those of one large "
        "batch.",
        "",
    ]
    if untrained:
        lines += [f"Labels without training images, which no prediction can have: {', '.join(untrained)}.", ""]
    lines += [
        *claims(results, settings, seed),
        *still_learning(results),
        image("Accuracy and losses per epoch, all settings", accuracy_figure),
        "",
        image(f"Confusion matrix of setting {run.name}", confusion_figure),
        "",
    ]
    if wrong:
        lines += [image(f"Images that setting {run.name} misclassifies", mistakes_figure), ""]
    metrics = select_metrics(
        results, "accuracy", "accuracy_low", "accuracy_high", "best_accuracy", "best_epoch", "train_loss", "val_loss"
    )
    figures = [accuracy_figure, confusion_figure, *([mistakes_figure] if wrong else [])]
    return Section(lines, {TABLE: summary}, metrics, {run.identity: figures})
