"""The classification section: the table, the original's claims, accuracy per epoch, confusions and mistakes."""

import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.classification import BOOTSTRAP
from stages.params.classification import Setting
from stages.report.claims import Claim, claim_lines, mean_differences
from stages.report.confusion_matrix import plot_confusion_matrix
from stages.report.contact_sheets import plot_mistakes
from stages.report.curves import plot_accuracy, write_curves
from stages.report.numbers import format_interval, format_scientific
from stages.report.original import load_original, sort_as_original
from stages.report.results import Result
from stages.report.section import FIGURES, Inputs, Section, render, select_metrics
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
    label_column, accuracy_column = original["columns"]
    rows = []
    for result in sort_as_original(results, TABLE):
        params = result.run.params
        metrics = result.metrics
        # The original states some accuracies in words, such as "over 94".
        label, accuracy = original_row(result.run.name, settings) or (result.run.name, None)
        cells = {
            label_column: label,
            "Learning Rate": format_scientific(params["lr"]),
            "Input": f"{params['size']}x{params['size']}" + (", augmented" if params["augment"] else ""),
            "Effective batch size": str(effective_batch_size(result)),
            "Steps": str(metrics["steps"]),
            "Train loss": f"{metrics['train_loss']:.2f}",
            accuracy_column: f"{metrics['accuracy']:.2f}",
            "95 % interval": format_interval(metrics, "accuracy"),
            "Best epoch": f"{metrics['best_accuracy']:.2f} ({metrics['best_epoch']})",
            "Original": "-" if accuracy is None else str(accuracy),
            "Difference": f"{metrics['accuracy'] - accuracy:+.2f}" if isinstance(accuracy, int | float) else "-",
        }
        rows.append(cells)
    return Table.from_dicts(f"Classification. {original['caption']}", rows)


def effective_batch_size(result: Result) -> int:
    """Images per optimizer step."""
    return result.run.params["batch_size"] * result.run.params["accumulate"]


@cache
def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Every validation image's label, the predicted one, and all probabilities."""
    return pq.read_table(path).to_pylist()


def hits(result: Result) -> np.ndarray:
    """100 for every image whose label is predicted, else 0."""
    return np.array([100.0 * (row["predicted"] == row["label"]) for row in read_predictions(result.predictions)])


def claims(results: list[Result], settings: dict[str, Setting], seed: int) -> list[str]:
    """What the original says of these settings."""
    rows = {result.run.name: original_row(result.run.name, settings) for result in results}
    originals = {name: row[1] if row else None for name, row in rows.items()}
    return claim_lines(CLAIMS, results, originals, "accuracy", partial(mean_differences, hits, seed=seed))


def still_learning(results: list[Result]) -> list[str]:
    """The settings that were still learning when their training ended, in a few words each."""
    return [
        f"`{result.run.name}`, training loss {result.metrics['train_loss']:.2f} after {result.metrics['steps']} steps "
        f"of {effective_batch_size(result)} images"
        for result in results
        if _is_learning(result)
    ]


def _is_learning(result: Result) -> bool:
    """Whether the training loss fell in the last epoch, and lies between a trained model's and a random guess's."""
    losses = [epoch["train_loss"] for epoch in result.run.history]
    random_guess = math.log(len(result.run.metrics["confusion"]))
    return len(losses) > 1 and LEARNED_LOSS < losses[-1] < min(losses[-2], random_guess)


def section(inputs: Inputs) -> Section:
    """The table with its claims and figures."""
    results = inputs.results["classification"]
    manifest = inputs.labeled
    settings = inputs.experiment.classification.settings
    accuracy_figure, confusion_figure, mistakes_figure = figures = [
        FIGURES / "classification" / f"{name}.png" for name in ("accuracy_per_epoch", "confusion", "mistakes")
    ]
    best = max(results, key=lambda result: result.metrics["accuracy"])
    plot_accuracy(accuracy_figure, results)
    plot_confusion_matrix(confusion_figure, best, manifest.labels)
    wrong = plot_mistakes(mistakes_figure, best.run.name, manifest.split("val"), read_predictions(best.predictions))
    write_curves("classification", results, {key: key for key in ("epoch", "train_loss", "val_loss", "accuracy")})
    accuracies = table(results, settings)
    text = render(
        "classification.md",
        run=best.run,
        table=accuracies,
        source=load_original()[TABLE]["source"],
        claims=claims(results, settings, inputs.experiment.seed_for(BOOTSTRAP)),
        learning=still_learning(results),
        wrong=wrong,
    )
    keys = ("accuracy", "accuracy_low", "accuracy_high", "best_accuracy", "best_epoch", "train_loss", "val_loss")
    figures = figures if wrong else figures[:2]
    return Section(text, {TABLE: accuracies}, select_metrics(results, *keys), {best.run_id: figures})
