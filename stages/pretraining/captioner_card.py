"""The parts that the model cards of both captioners share: their data, their metrics and their curve."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.pretraining.card import DATA_SOURCES, CardInfo, format_percent, markdown_table, plot_curve

PLOTTED = ("class_named", "place_right", "relation_right")


def describe_data(original: str) -> str:
    """The training scenes and captions, whose style differs from the task's as `original` did."""
    noise = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in asdict(web.Noise()).items())
    return (
        f"The training data has another style than the task's, as the original checkpoint was trained on {original} "
        "(`stages/data/scenes/web.py`): scenes of 1 to 4 objects, mostly on textures, with digits by writers that the "
        "task's splits do not use, and captions that omit or confuse objects. Probabilities: "
        f"{noise}."
    )


def describe_results(
    folder: Path,
    metrics: Mapping[str, str],
    info: CardInfo,
    state: TrainState,
    results: dict[str, dict[str, float]],
) -> list[str]:
    """The lines of a card from its results to its end; writes `curve.png` into `folder`.

    `metrics` describes the percentages, and `results` has them for every style of scenes.
    """
    plot_curve(folder / "curve.png", state, "percent, held out", PLOTTED, 100)
    scores = [
        (description, *(format_percent(result[metric]) for result in results.values()))
        for metric, description in metrics.items()
    ]
    points = [
        (f"{point['images']:,}", f"{point['loss']:.3f}", *(format_percent(point[metric]) for metric in metrics))
        for point in state.curve
    ]
    return [
        f"On {info.held_out} held-out scenes per style, with digits that neither the training scenes nor the task's "
        "splits use, in percent:",
        "",
        *markdown_table(["", *results], scores),
        "",
        "The largest object is the one with the largest radius; captions are greedy, after the prompt *a picture of*.",
        "",
        "![Loss and metrics against images seen](curve.png)",
        "",
        *markdown_table(["images seen", "training loss", *(metric.replace("_", " ") for metric in metrics)], points),
        "",
        DATA_SOURCES,
        "",
    ]
