"""A score for single captions: smoothed BLEU-4 (Lin and Och, 2004), called BLEU+1 here.

BLEU of a single caption is 0 without a matching 4-gram, which is so for most captions, so they could not be ordered.
Here 1 is added to the number of matching n-grams and of all n-grams, for n = 2 to 4.
"""

from collections.abc import Sequence

import numpy as np

from stages.captioning.bleu import count_ngrams


def score_captions(captions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """BLEU+1 of every caption against its reference, in percent, `(N,)`; 0 if no word matches."""
    counts = count_ngrams(captions, [[reference] for reference in references])
    added = np.array([0, 1, 1, 1])
    with np.errstate(divide="ignore", invalid="ignore"):  # no matching word: log 0; no words: 0 / 0. Both score 0.
        log_precision = np.log((counts.matches + added) / (counts.totals + added)).mean(axis=1)
        log_brevity = np.minimum(1 - counts.reference_lengths / counts.lengths, 0)
    return 100 * np.nan_to_num(np.exp(log_precision + log_brevity), nan=0.0)
