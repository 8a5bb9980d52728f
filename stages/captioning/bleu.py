"""Corpus BLEU (Papineni et al., 2002) as nltk counts it: lower case, words between white space, no smoothing.

    python -m stages.captioning.bleu PREDICTIONS REFERENCES [REFERENCES ...]

scores two files (or one and several of references), a caption a line.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nltk.translate.bleu_score import closest_ref_length, modified_precision

from stages.core.bootstrap import resample_counts
from stages.core.stage import InputError, stage

ORDERS = 4


@dataclass(frozen=True)
class Counts:
    """What BLEU is made of, a row a caption: n-grams `matched` of `possible` `(N, 4)`; `words` and reference `(N,)`."""

    matched: np.ndarray
    possible: np.ndarray
    words: np.ndarray
    reference: np.ndarray


def count_ngrams(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Counts:
    """Counts of every prediction against its one or more references (nltk's clipped n-grams and closest length)."""
    matched, possible, words, lengths = [], [], [], []
    for prediction, told in zip(predictions, references, strict=True):
        said, wanted = prediction.lower().split(), [text.lower().split() for text in told]
        shares = [modified_precision(wanted, said, order) for order in range(1, ORDERS + 1)]
        matched.append([share.numerator for share in shares])
        possible.append([share.denominator for share in shares])
        words.append(len(said))
        lengths.append(closest_ref_length(wanted, len(said)))
    return Counts(*(np.array(one, np.int64) for one in (matched, possible, words, lengths)))


def bleu(counts: Counts, order: int = ORDERS) -> float:
    """BLEU of n-grams up to `order`, in percent; 0 where no n-gram of an order matches."""
    return float(_scores(*(one.sum(0, keepdims=True) for one in vars(counts).values()), order)[0])


def bootstrap_bleu(counts: Counts, *, seed: int, draws: int = 1000) -> np.ndarray:
    """BLEU-4 of bootstrap samples of whole images, `(draws,)`; pairs with other captions of the same images."""
    drawn = resample_counts(len(counts.words), seed=seed, draws=draws)
    return _scores(*(drawn @ one for one in vars(counts).values()), ORDERS)


def _scores(matched, possible, words, reference, order: int) -> np.ndarray:
    """In percent, from sums over a corpus, a row each: geometric mean of precisions times the brevity penalty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.log(matched[:, :order] / possible[:, :order]).mean(axis=1)
        brevity = np.minimum(1 - reference / words, 0)
    return 100 * np.nan_to_num(np.exp(precision + brevity), nan=0.0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as fault:
        raise InputError(f"{path}: no UTF-8 at byte {fault.start}") from fault


def main(predicted: Path, references: list[Path]) -> None:
    predictions, told = _lines(predicted), [_lines(path) for path in references]
    for path, lines in zip(references, told, strict=True):
        if len(lines) != len(predictions):
            raise InputError(f"{path} has {len(lines)} lines, {predicted} {len(predictions)}; expected one a caption")
    if predictions == [""]:
        raise InputError(f"{predicted} is empty; expected a caption a line")
    counts = count_ngrams(predictions, list(zip(*told, strict=True)))
    for order in range(1, ORDERS + 1):
        print(f"BLEU-{order} {bleu(counts, order):.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path, nargs="+")
    asked = parser.parse_args()
    with stage("bleu"):
        main(asked.predictions, asked.references)
