"""Corpus BLEU (Papineni et al., 2002) with nltk's counts: lower case, words split at white space, no smoothing.

    BLEU = 100 * min(1, exp(1 - r / c)) * (p_1 * ... * p_N)^(1/N)

`p_n` is the share of the captions' n-grams that match a reference, `c` the captions' and `r` the references' total
length in words. All of it follows from counts that add up over captions, so a bootstrap sample is a weighted sum.

nltk counts a caption of fewer than n words as one n-gram without a match, pycocoevalcap's scorer as none: the two
differ where captions are that short, and agree elsewhere.

    python -m stages.captioning.bleu PREDICTIONS REFERENCES [REFERENCES ...]

scores a text file against one or more reference files, one caption per line.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from nltk.translate.bleu_score import closest_ref_length, modified_precision

from stages.core.bootstrap import resample_counts
from stages.core.stage import InputError, stage

ORDERS = 4  # BLEU-4, as in the paper


@dataclass(frozen=True)
class NgramCounts:
    """Counts of `N` captions: `matches` of `totals` n-grams, `(N, 4)` each; lengths in words, `(N,)` each."""

    matches: np.ndarray
    totals: np.ndarray
    lengths: np.ndarray
    reference_lengths: np.ndarray


def count_ngrams(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NgramCounts:
    """Counts of every prediction against its one or more references.

    An n-gram matches as often as the reference that has it most often. The reference length is the closest one.
    """
    counts = [
        _count_caption(prediction, tuple(texts)) for prediction, texts in zip(predictions, references, strict=True)
    ]
    matches, totals, lengths, reference_lengths = map(np.array, zip(*counts, strict=True))
    return NgramCounts(matches, totals, lengths, reference_lengths)


@cache  # cells and seeds share many captions: at low temperatures, most
def _count_caption(prediction: str, references: tuple[str, ...]) -> tuple[list[int], list[int], int, int]:
    """A caption's row of each field of `NgramCounts`."""
    words = prediction.lower().split()
    reference_words = [text.lower().split() for text in references]
    precisions = [modified_precision(reference_words, words, order) for order in range(1, ORDERS + 1)]
    # nltk returns fractions that are not reduced, so numerators and denominators are the counts.
    matches = [precision.numerator for precision in precisions]
    totals = [precision.denominator for precision in precisions]
    return matches, totals, len(words), closest_ref_length(reference_words, len(words))


def bleu(counts: NgramCounts, order: int = ORDERS) -> float:
    """BLEU of n-grams up to `order`, in percent; 0 if no n-gram of some order matches."""
    each_once = np.ones((1, len(counts.lengths)), np.int64)
    return float(_weighted_bleu(counts, each_once, order)[0])


def bootstrap_bleu(counts: NgramCounts, *, seed: int) -> np.ndarray:
    """BLEU-4 of bootstrap samples of whole images, `(draws,)`. Equal seeds draw the same images: pair differences."""
    return _weighted_bleu(counts, resample_counts(len(counts.lengths), seed=seed), ORDERS)


def _weighted_bleu(counts: NgramCounts, weights: np.ndarray, order: int) -> np.ndarray:
    """BLEU in percent, `(samples,)`, of samples with `weights` `(samples, N)` int64: how often each caption counts."""
    with np.errstate(divide="ignore", invalid="ignore"):  # no match: log 0; no words: 0 / 0. Both score 0.
        precisions = (weights @ counts.matches)[:, :order] / (weights @ counts.totals)[:, :order]
        log_precision = np.log(precisions).mean(axis=1)
        log_brevity = np.minimum(1 - (weights @ counts.reference_lengths) / (weights @ counts.lengths), 0)
    return 100 * np.nan_to_num(np.exp(log_precision + log_brevity), nan=0.0)


def _read_lines(path: Path) -> list[str]:
    """Lines without a byte order mark. Unlike `splitlines`, a form feed within a caption does not end it."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8 at byte {error.start}") from error


def main(prediction_path: Path, reference_paths: list[Path]) -> None:
    """Print BLEU-1 to BLEU-4 of the captions in a file."""
    predictions = _read_lines(prediction_path)
    if predictions == [""]:
        raise InputError(f"{prediction_path} is empty; expected one caption per line")
    reference_columns = []
    for path in reference_paths:
        references = _read_lines(path)
        if len(references) != len(predictions):
            lengths = f"{path} has {len(references)} lines, {prediction_path} {len(predictions)}"
            raise InputError(f"{lengths}; expected one caption per line")
        reference_columns.append(references)
    counts = count_ngrams(predictions, list(zip(*reference_columns, strict=True)))
    for order in range(1, ORDERS + 1):
        print(f"BLEU-{order} {bleu(counts, order):.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path, nargs="+")
    arguments = parser.parse_args()
    with stage("bleu", record=False):
        main(arguments.predictions, arguments.references)
