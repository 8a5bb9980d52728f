"""What the two originals conclude: every sentence, as comparisons that the runs can decide.

A row is named `task/run`, or `task` alone for the task's first run, whose name depends on the params.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.report.numbers import format_scientific
from stages.report.results import Result
from stages.retrieval import RECALL

# What the original says of a value and its reference. The last two are refuted by a significant difference only.
Direction = Literal[">", "<", "≤", "≥"]
HIGHER: Direction = ">"
LOWER: Direction = "<"
NOT_HIGHER: Direction = "≤"
NOT_LOWER: Direction = "≥"
# One measured sentence for a comparison that does not come out as the original says; None if the runs have none.
Explain = Callable[[Result, Result], str | None]


@dataclass(frozen=True)
class BestRow:
    """The row with the highest mean of those that `matches` accepts, among the original's rows of `tasks`."""

    label: str
    tasks: tuple[str, ...]
    matches: Callable[[Result], bool]


@dataclass(frozen=True)
class Comparison:
    """Row `left` has a higher (or lower) metric than row `right`.

    `original` is the original's difference, where it gives words in place of two numbers.
    """

    left: str
    right: str | BestRow
    direction: Direction
    original: str | None = None
    explain: Explain | None = None


@dataclass(frozen=True)
class EffectComparison:
    """Rows `small` differ less in their metric than rows `large`, whatever the signs of the two differences."""

    small_label: str
    small: tuple[str, str]
    large_label: str
    large: tuple[str, str]


@dataclass(frozen=True)
class MeasuredAgainst:
    """A metric of one run is higher (or lower) than a reference: a number, or another metric of the run.

    The metric's own interval is compared with the reference. `difference` names the metric that holds the interval of
    metric minus reference, for two metrics that vary together.
    """

    row: str
    metric: str
    label: str
    reference: str | float
    reference_label: str
    direction: Direction
    difference: str | None = None
    explain: Callable[[Result], str | None] | None = None


@dataclass(frozen=True)
class OriginalLevel:
    """A row reaches the original's own number, which is comparable with the original's images and models only."""

    row: str


@dataclass(frozen=True)
class EpochAgainst:
    """The accuracy of a row's best epoch is above that of chance, or (`last`) its last epoch's below its best one's.

    Intervals are those of proportions of `images` images: Wilson's (1927) for one, and for two that of the difference
    of independent ones, which is too wide for the same images.
    """

    row: str
    last: bool
    explain: Callable[[Result], str | None]


@dataclass(frozen=True)
class NotMeasured:
    """A part of a sentence that no run can decide, and why."""

    compared: str
    reason: str


Claim = Comparison | EffectComparison | MeasuredAgainst | OriginalLevel | EpochAgainst | NotMeasured


@dataclass(frozen=True)
class Statement:
    """A sentence of the original (in our words), and the comparisons that it consists of. `section` is the page's."""

    section: str
    sentence: str
    claims: tuple[Claim, ...]


def _seed_mean(result: Result, key: str) -> np.ndarray:
    """A column of the history, `(epochs,)`, as the mean over the seeds."""
    return np.mean([[epoch[key] for epoch in run.history] for run in result.runs], axis=0)


def _compare_train_losses(left: Result, right: Result) -> str:
    losses = [f"{row.metrics['train_loss']:.3f} (`{row.name}`)" for row in (left, right)]
    return f"The training loss of the last epoch is {losses[0]} and {losses[1]}."


def _describe_fine_tuning(result: Result) -> str:
    params = result.run.params
    images = params["batch_size"] * params["accumulate"]
    steps = f"{result.metrics['steps']:.0f} steps of {images} images"
    return f"{result.metrics['train_loss']:.2f} after {steps} (`{result.name}`)"


def _compare_fine_tunings(left: Result, right: Result) -> str:
    return f"The training loss is {_describe_fine_tuning(left)}, and {_describe_fine_tuning(right)}."


def _describe_accuracies(result: Result) -> str:
    accuracies = ", ".join(f"{accuracy:.2f}" for accuracy in _seed_mean(result, "accuracy"))
    return f"The accuracy per epoch is {accuracies}."


def _describe_finetuning(left: Result, right: Result) -> str:
    params = left.run.params
    before, after = right.metrics[RECALL], left.metrics[RECALL]
    losses = _seed_mean(left, "train_loss")
    return (
        f"Finetuning moved R@1 from {before:.2f} to {after:.2f} in {params['epochs']} epochs at learning rate "
        f"{format_scientific(params['lr'])}; its training loss is {losses[0]:.3f} in the first epoch and "
        f"{losses[-1]:.3f} in the last."
    )


def _describe_last_epoch(left: Result, right: Result) -> str:
    recalls = _seed_mean(right, RECALL)
    change = recalls[-1] - recalls[-2] if len(recalls) > 1 else 0.0
    return f"`{right.name}` reaches {recalls[-1]:.2f} in {len(recalls)} epochs, {change:+.2f} in the last of them."


def _describe_end(result: Result) -> str:
    metrics = result.metrics
    return (
        f"`<end>` has {metrics['end_mass']:.1f} % of its attention on the objects, which cover "
        f"{metrics['end_area']:.1f} % of the area; the captions' other words have {metrics['end_others']:.1f} % there."
    )


def _compare_caption_lengths(left: Result, right: Result) -> str:
    words = [f"{row.metrics['words']:.1f} (`{row.name}`)" for row in (left, right)]
    lengths = f"Captions have {words[0]} and {words[1]} words on average."
    if left.run.params.get("stop") == "end_token":
        lengths += " They end at their end token; the original's go on until all captions of their batch have ended."
    return lengths


BEST_SCRATCH = BestRow(
    "best row from scratch",
    ("retrieval", "retrieval_grid"),
    lambda result: result.run.params["init"] == "scratch",
)
BEST_OTHER_CELL = BestRow("best other cell", ("captioning",), lambda result: result.name != "k5_t01")

TEMPERATURE = ("captioning/k50_t1", "captioning/k50_t01")

STATEMENTS = (
    Statement(
        "segmentation",
        "The convolutional head is no better than the linear one; with a 5x5 kernel it is worse still.",
        (
            Comparison("segmentation/convolutional", "segmentation/linear", NOT_HIGHER, explain=_compare_train_losses),
            Comparison(
                "segmentation/convolutional_5x5", "segmentation/convolutional", LOWER, explain=_compare_train_losses
            ),
        ),
    ),
    Statement(
        "segmentation",
        "The transformer head is far better.",
        (Comparison("segmentation/transformer", "segmentation/linear", HIGHER, explain=_compare_train_losses),),
    ),
    Statement(
        "segmentation",
        "Sharing queries and keys costs a little.",
        (
            Comparison(
                "segmentation/transformer_shared_qk", "segmentation/transformer", LOWER, explain=_compare_train_losses
            ),
            EffectComparison(
                "sharing",
                ("segmentation/transformer", "segmentation/transformer_shared_qk"),
                "transformer head",
                ("segmentation/linear", "segmentation/transformer"),
            ),
        ),
    ),
    Statement(
        "captioning",
        "Lowering the temperature raises BLEU much.",
        (
            Comparison("captioning/k50_t01", "captioning/k50_t1", HIGHER, explain=_compare_caption_lengths),
            Comparison("captioning/k50_t07", "captioning/k50_t1", HIGHER, explain=_compare_caption_lengths),
            Comparison("captioning/k50_t01", "captioning/k50_t07", HIGHER, explain=_compare_caption_lengths),
        ),
    ),
    Statement(
        "captioning",
        "K and the prompt matter less.",
        (
            EffectComparison("K", ("captioning/k50_t01", "captioning/k5_t01"), "temperature", TEMPERATURE),
            EffectComparison(
                "prompt", ("captioning/greedy", "captioning/greedy_this_picture_shows"), "temperature", TEMPERATURE
            ),
            EffectComparison(
                "prompt", ("captioning/k50_t07", "captioning/k50_t07_this_image_shows"), "temperature", TEMPERATURE
            ),
        ),
    ),
    Statement(
        "captioning",
        "The best setting (K = 5, T = 0.1) is a little above greedy.",
        (
            Comparison("captioning/k5_t01", BEST_OTHER_CELL, HIGHER),
            Comparison("captioning/k5_t01", "captioning/greedy", HIGHER),
        ),
    ),
    Statement(
        "retrieval",
        "Finetuning is better than the provided checkpoint, which is better than training from scratch.",
        (
            Comparison("retrieval/finetuned", "retrieval/provided", HIGHER, explain=_describe_finetuning),
            Comparison("retrieval/provided", "retrieval/scratch", HIGHER, explain=_describe_last_epoch),
        ),
    ),
    Statement(
        "retrieval",
        "A temperature of 0.5 hurts.",
        (Comparison("retrieval_grid/scratch_lr1e-3_wd5e-4_t05", "retrieval_grid/scratch_lr1e-3_wd5e-4", LOWER),),
    ),
    Statement(
        "retrieval",
        "Training from scratch does not reach the provided checkpoint in a few epochs.",
        (Comparison("retrieval/provided", BEST_SCRATCH, HIGHER, explain=_describe_last_epoch),),
    ),
    Statement(
        "classification",
        "Adam with learning rate 1e-6 reaches 89 % in 5 epochs.",
        (OriginalLevel("classification/base"),),
    ),
    Statement(
        "classification",
        "With learning rate 1e-4, accuracy rises fast, then collapses.",
        (
            EpochAgainst("classification/high_lr", last=False, explain=_describe_accuracies),
            EpochAgainst("classification/high_lr", last=True, explain=_describe_accuracies),
            Comparison("classification/high_lr", "classification/base", LOWER),
        ),
    ),
    Statement(
        "classification",
        "Augmentation, with images resized to 256x256, adds 2 to 3 points.",
        (
            Comparison(
                "classification/augmented", "classification/base", HIGHER, "+2 to +3", explain=_compare_fine_tunings
            ),
        ),
    ),
    Statement(
        "classification",
        "Accumulating gradients over 15 steps, too, brings it over 94 %.",
        (
            Comparison(
                "classification/accumulated",
                "classification/augmented",
                HIGHER,
                "more than +2",
                explain=_compare_fine_tunings,
            ),
        ),
    ),
    Statement(
        "attention",
        "Position embeddings show the image's grid structure.",
        (
            MeasuredAgainst(
                "position_similarity",
                "neighbors",
                "Most similar patch is a neighbor (%)",
                "by_chance",
                "chance",
                HIGHER,
            ),
            MeasuredAgainst(
                "position_similarity",
                "rank_correlation",
                "Rank correlation with distance",
                0.0,
                "0",
                LOWER,
            ),
        ),
    ),
    # The masks are of whole objects: faces have none.
    Statement(
        "attention",
        "The class token's attention lies on the animals' faces, with a few stray background patches "
        "(here: on the object; its strongest patch, in most images).",
        tuple(
            claim
            for run in ("pretrained", "finetuned")
            for claim in (
                MeasuredAgainst(
                    f"class_attention/{run}", "mean_times", "Attention, times uniform", 1.0, "uniform attention", HIGHER
                ),
                MeasuredAgainst(f"class_attention/{run}", "hit", "Pointing game (%)", 50.0, "half the images", HIGHER),
            )
        ),
    ),
    Statement(
        "attention",
        "Nouns light up their objects.",
        (
            MeasuredAgainst(
                "caption_attention",
                "class_times",
                "Attention of class names, times uniform",
                1.0,
                "uniform attention",
                HIGHER,
            ),
            MeasuredAgainst(
                "caption_attention",
                "class_mass",
                "Attention of class names on their object (%)",
                "class_others",
                "its other words",
                HIGHER,
                difference="class_more",
            ),
        ),
    ),
    Statement(
        "attention",
        "`<end>` looks at the main object and its surroundings.",
        (
            MeasuredAgainst(
                "caption_attention",
                "end_times",
                "Attention of `<end>`, times uniform",
                1.0,
                "uniform attention",
                HIGHER,
                explain=_describe_end,
            ),
            NotMeasured("`<end>`, on the objects' surroundings", "the masks are of objects, not of their surroundings"),
        ),
    ),
)
