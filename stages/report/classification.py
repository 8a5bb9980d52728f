"""The classification section: the four settings, accuracy epoch by epoch, what is confused with what."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.ticker import MaxNLocator

from stages.core.atomic import write_text
from stages.core.bootstrap import bootstrap_means
from stages.core.figures import figure
from stages.data.images import read_image
from stages.data.manifest import Manifest, evenly_spaced
from stages.params.classification import Setting
from stages.params.model_source import display_name
from stages.report.claims import Claim, answerable
from stages.report.numbers import scientific
from stages.report.original import load_original
from stages.report.results import Result
from stages.report.section import CURVES, FIGURES, Section, image
from stages.report.tables import Table

TABLE = "classification"
MISTAKES = 12  # images that are shown

# The report's rows, as it set them. It names learning rates and sizes of its ViT; a profile gives them its own meaning.
AS_REPORTED = {
    "base": {"lr": "base", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "high_lr": {"lr": "high", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "augmented": {"lr": "base", "augment": True, "size": "large", "accumulate": 1, "epochs": 5},
    "accumulated": {"lr": "base", "augment": True, "size": "large", "accumulate": 15, "epochs": 5},
}

CLAIMS = {
    Claim("With a learning rate far too high, accuracy collapses", "high_lr", "base", -1): "-86",
    Claim("Augmentation on larger images adds a little", "augmented", "base", +1): "+2 to +3",
    Claim("Accumulating gradients over 15 steps adds more", "accumulated", "augmented", +1): "more than +2",
}


def reported(name: str, settings: dict[str, Setting]) -> list | None:
    """The report's label and accuracy of a row, if the row is still set as there."""
    asked = settings[name].model_dump(exclude={"batch_size"})
    return load_original()[TABLE]["rows"][name] if AS_REPORTED.get(name) == asked else None


def table(results: list[Result], settings: dict[str, Setting]) -> Table:
    """The report's rows in its order, then any others."""
    order = list(load_original()[TABLE]["rows"])
    ranked = sorted(results, key=lambda one: order.index(one.run.name) if one.run.name in order else len(order))
    own = ("Learning Rate", "Input", "Images a step", "Steps", "Train loss")
    label, accuracy = load_original()[TABLE]["columns"]
    columns = (label, *own, accuracy, "95 % interval", "Best epoch", "Report", "Difference")
    return Table(
        f"Classification. {load_original()[TABLE]['caption']}", columns, tuple(_row(one, settings) for one in ranked)
    )


def _row(result: Result, settings: dict[str, Setting]) -> tuple[str, ...]:
    asked, numbers = result.run.params, result.metrics
    label, there = reported(result.run.name, settings) or (result.run.name, None)
    size = f"{asked['size']}x{asked['size']}"
    return (
        label,
        scientific(asked["lr"]),
        f"{size}, augmented" if asked["augment"] else size,
        str(asked["batch_size"] * asked["accumulate"]),
        str(numbers["steps"]),
        f"{numbers['train_loss']:.2f}",
        f"{numbers['accuracy']:.2f}",
        f"{numbers['accuracy_low']:.2f} to {numbers['accuracy_high']:.2f}",
        f"{numbers['best_accuracy']:.2f} ({numbers['best_epoch']})",
        "-" if there is None else str(there),
        f"{numbers['accuracy'] - there:+.2f}" if isinstance(there, int | float) else "-",
    )


def claims(results: list[Result], settings: dict[str, Setting], seed: int) -> list[str]:
    """What the report says of these settings, where both are there as it set them."""
    by_name, lines = {one.run.name: one for one in results if reported(one.run.name, settings)}, []
    for claim in answerable(CLAIMS, by_name):
        first, second = by_name[claim.first], by_name[claim.second]
        hits = _hits(first) - _hits(second)
        draws = bootstrap_means(hits, seed=seed)
        lines.append(claim.line(CLAIMS[claim], first.metrics["accuracy"] - second.metrics["accuracy"], draws))
    return lines


def _hits(result: Result) -> np.ndarray:
    """100 for every image whose label was told, else 0."""
    found = read_predictions(Path(result.run.artifacts["predictions"]))
    return np.array([100.0 * (row["predicted"] == row["label"]) for row in found])


@cache
def read_predictions(path: Path) -> list[dict]:
    """Every validation image's label, the predicted one, and all probabilities."""
    return pq.read_table(path).to_pylist()


def why(results: list[Result]) -> list[str]:
    """Which settings were still learning when they ended, and after how many steps."""
    told = [
        f"`{one.run.name}`, training loss {one.metrics['train_loss']:.2f} after {one.metrics['steps']} steps of "
        f"{one.run.params['batch_size'] * one.run.params['accumulate']} images"
        for one in results
        if _learning(one)
    ]
    return [f"Still learning when they ended: {'; '.join(told)}.", ""] if told else []


def untrained(labels: list[str]) -> list[str]:
    """That some validation images cannot be told right."""
    return (
        [f"No training image has, and no prediction will have, the labels {', '.join(labels)}.", ""] if labels else []
    )


def _learning(result: Result) -> bool:
    """Whether the training loss was still falling in the last epoch, between what is learned and what is chance."""
    *_, before, last = [row["train_loss"] for row in result.run.history[:1] + result.run.history]
    return 0.5 < last < min(before, math.log(len(result.run.metrics["confusion"])))


def section(results: list[Result], manifest: Manifest, settings: dict[str, Setting], seed: int) -> Section:
    """The table with what belongs to it."""
    folder = FIGURES / "classification"
    curves, confused, missed = (folder / f"{name}.png" for name in ("accuracy_per_epoch", "confusion", "mistakes"))
    draw_curves(curves, results)
    best, made = max(results, key=lambda one: one.metrics["accuracy"]), table(results, settings)
    draw_confusion(confused, best, manifest.labels)
    wrong = draw_mistakes(missed, best, manifest)
    write_curves(results)
    asked, stated = best.run, claims(results, settings, seed)
    lines = [
        "## Classification",
        "",
        f"`{display_name(asked.inputs['backbone'])}` with a new classification layer, all of it fine-tuned with Adam on "
        f"{asked.inputs['train_images']} images of {len(manifest.labels)} labels from `{asked.inputs['source']}`; "
        f"accuracy on {best.metrics['images']} others.",
        "",
        made.markdown(),
        "",
        "Accuracy in percent after the last epoch, with Wilson's interval for a share of so many images; it does not "
        "hold the randomness of training. *Best epoch* is the highest accuracy and its epoch, chosen on these very "
        f"images. *Report* is what {load_original()[TABLE]['source']}, states, at its own learning rates; ours stand "
        "beside. Batch norm, where the ViT has any, keeps its pretrained statistics, so that accumulated steps are "
        "those of one large batch.",
        "",
        *untrained(asked.metrics["untrained_labels"]),
        *(["What the report says of these settings:", "", *stated, ""] if stated else []),
        *why(results),
        image("Accuracy and losses per epoch, all settings", curves),
        "",
        image(f"Confusion matrix of setting {best.run.name}", confused),
        "",
        *([image(f"Images that setting {best.run.name} takes for something else", missed), ""] if wrong else []),
    ]
    kept = ("accuracy", "accuracy_low", "accuracy_high", "best_accuracy", "best_epoch", "train_loss", "val_loss")
    metrics = {one.run.name: {key: one.metrics[key] for key in kept} for one in results}
    figures = [curves, confused, *([missed] if wrong else [])]
    return Section(lines, {TABLE: made}, metrics, {best.run.identity: figures})


def draw_curves(path: Path, results: list[Result]) -> None:
    """Validation accuracy per epoch, and both losses, a color a setting."""
    labels = len(results[0].run.metrics["confusion"])
    with figure(path, 1, 2, figsize=(10.4, 3.6)) as (drawn, (left, right)):
        for number, one in enumerate(results):
            epochs = [row["epoch"] for row in one.run.history]
            style = {"color": f"C{number}", "marker": "osD^v"[number % 5], "markersize": 4, "linewidth": 1.4}
            accuracy = [row["accuracy"] for row in one.run.history]
            left.plot(epochs, accuracy, label=f"{one.run.name}: {accuracy[-1]:.1f}", **style)
            right.plot(epochs, [row["train_loss"] for row in one.run.history], **style)
            right.plot(epochs, [row["val_loss"] for row in one.run.history], **{**style, "linestyle": "--"})
        left.axhline(100 / labels, color="0.4", linestyle=":", linewidth=1.2, label=f"chance: {100 / labels:.1f}")
        left.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
        right.set(xlabel="epoch", ylabel="cross entropy")
        right.set_ylim(bottom=0)
        right.plot([], [], color="0.3", label="training")
        right.plot([], [], color="0.3", linestyle="--", label="validation")
        right.legend(fontsize=8, frameon=False)
        drawn.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
        for axis in (left, right):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)


def draw_confusion(path: Path, result: Result, labels: tuple[str, ...]) -> None:
    """Counts of every true label's predictions; colors are shares of a row."""
    counts = np.array(result.run.metrics["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.27 * len(labels)
    with figure(path, figsize=(side + 0.8, side)) as (drawn, axis):
        shown = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.55 else "black"
            axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8, parse_math=False)
        axis.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(f"{result.run.name}: {result.metrics['accuracy']:.1f} % right", fontsize=10)
        drawn.colorbar(shown, ax=axis, shrink=0.8, aspect=30, label="of the true label's images (%)")


def draw_mistakes(path: Path, result: Result, manifest: Manifest) -> int:
    """Some of the images that were taken for something else; returns how many those are."""
    found = {row["image_id"]: row for row in read_predictions(Path(result.run.artifacts["predictions"]))}
    wrong = tuple(
        row for row in manifest.split("val") if found[row.image_id]["predicted"] != found[row.image_id]["label"]
    )
    shown = evenly_spaced(wrong, MISTAKES) if wrong else ()
    if not shown:
        return 0
    columns = min(6, len(shown))
    lines = -(-len(shown) // columns)
    with figure(path, lines, columns, figsize=(1.5 * columns, 1.85 * lines + 0.25), squeeze=False) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        for axis, row in zip(axes.flat, shown, strict=False):
            told = found[row.image_id]
            axis.imshow(np.asarray(read_image(Path(row.image))), interpolation="nearest")
            sure = 100 * max(told["probabilities"])
            axis.set_title(f"{told['label']}\nas {told['predicted']}, {sure:.0f} %", fontsize=8.5, parse_math=False)
        drawn.suptitle(f"{result.run.name}: {len(wrong)} of {len(found)} are taken for something else", fontsize=10)
    return len(wrong)


def write_curves(results: list[Result]) -> None:
    """Per-epoch figures as CSV, a file a setting, for `dvc plots`."""
    keys = ("epoch", "train_loss", "val_loss", "accuracy")
    for one in results:
        lines = [",".join(keys), *(",".join(str(row[key]) for key in keys) for row in one.run.history)]
        write_text(CURVES / "classification" / f"{one.run.name}.csv", "\n".join(lines) + "\n")
