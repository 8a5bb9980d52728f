"""Sample the next token of every row, and say whether rounding errors in the logits could have changed it.

Every row has its own parameters, so that greedy decoding, top-k and top-p sampling share a batch. For a row with logits
`x`, temperature `T` and a uniform random number `u`:

    s = x / T
    K = the k tokens with the highest s; of these, as many of the likeliest as reach probability p
    F(j) = sum of softmax(s) over tokens i <= j in K, divided by the sum over K
    next token = the first j with F(j) > u

Greedy decoding is k = 1. Tokens are ordered by ID, so a token's interval of `u` moves little when logits move little.

Rounding: if the difference of any two scores moves by at most `d`, the probability F of a set of tokens moves by at
most d F (1 - F) to first order, as dF = F (1 - F) (mean of ds inside the set - mean of ds outside). The code allows
twice that. A choice is certain if the borders that `k`, `p` and `u` are compared with lie farther away. `decoding.py`
repeats all other choices in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.params.captioning import Cell

NO_TOP_K = 2**31 - 1  # keeps any vocabulary whole
DOUBLE_ROUNDING = 1e-12  # more than sums of float64 probabilities are off


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of every row, each `(rows,)`; temperature and `top_p` are float64."""

    top_k: Tensor
    temperature: Tensor
    top_p: Tensor

    @classmethod
    def from_cells(cls, cells: Sequence[Cell], device: torch.device) -> "SamplingParams":
        """One row per greedy or sampling cell."""
        top_k = [1 if cell.type == "greedy" else cell.k or NO_TOP_K for cell in cells]
        temperature = [cell.temperature or 1.0 for cell in cells]
        top_p = [cell.p or 1.0 for cell in cells]
        return cls(
            torch.tensor(top_k, device=device),
            torch.tensor(temperature, dtype=torch.float64, device=device),
            torch.tensor(top_p, dtype=torch.float64, device=device),
        )

    def __getitem__(self, rows: Tensor) -> "SamplingParams":
        return SamplingParams(self.top_k[rows], self.temperature[rows], self.top_p[rows])


def sample_next(logits: Tensor, params: SamplingParams, uniform: Tensor, logit_error: float) -> tuple[Tensor, Tensor]:
    """Token IDs `(rows,)` from `logits` `(rows, vocabulary)`, and whether each is certain, `(rows,)` bool.

    `uniform` `(rows,)` holds a random number in [0, 1) per row. A token is certain if it stays the same while the
    difference of any two logits moves by less than `logit_error`.
    """
    top_logits, token_ids = _sorted_candidates(logits, params)
    scores = top_logits.double() / params.temperature[:, None]
    score_error = (logit_error / params.temperature)[:, None]
    top_k = params.top_k[:, None]
    top_p = params.top_p[:, None]
    candidates = scores.shape[1]
    rank = torch.arange(candidates, device=logits.device)

    # Top-k: certain if the last score inside and the first outside are far apart. Clamped so that the next column
    # exists; a row that keeps the whole vocabulary drops nothing.
    last_rank = (top_k - 1).clamp(max=candidates - 2)
    gap = scores.gather(1, last_rank) - scores.gather(1, last_rank + 1)
    k_certain = (gap > score_error) | (top_k >= logits.shape[1])

    # Top-p: a token stays if the likelier ones do not yet reach p. The likeliest always stays.
    probabilities = scores.masked_fill(rank >= top_k, -torch.inf).softmax(1)
    likelier = probabilities.cumsum(1) - probabilities
    in_nucleus = (likelier < top_p) | (rank == 0)
    count = in_nucleus.sum(1, keepdim=True).clamp(max=candidates - 1)
    gap = scores.gather(1, count - 1) - scores.gather(1, count)
    p_certain = ((likelier - top_p).abs() > _cumulative_error(likelier, score_error)) & (gap > score_error)
    p_certain |= top_p == 1  # nothing is cut

    # Inverse of the cumulative distribution, in the order of token IDs.
    by_id = token_ids.argsort(1)
    probabilities = probabilities.masked_fill(~in_nucleus, 0).gather(1, by_id)
    cumulative = probabilities.cumsum(1) / probabilities.sum(1, keepdim=True)
    chosen = torch.searchsorted(cumulative, uniform[:, None].double(), right=True).clamp(max=candidates - 1)
    # `uniform` is below 1, so the end of the last interval is no border.
    borders = cumulative.masked_fill(cumulative > 1 - DOUBLE_ROUNDING, torch.inf)
    draw_certain = (borders - uniform[:, None]).abs() > _cumulative_error(cumulative, score_error)

    tokens = token_ids.gather(1, by_id.gather(1, chosen))[:, 0]
    return tokens, (k_certain & p_certain & draw_certain).all(1)


def _cumulative_error(cumulative: Tensor, score_error: Tensor) -> Tensor:
    """A bound on how far cumulative probabilities move when differences of scores move by `score_error`."""
    return 2 * score_error * cumulative * (1 - cumulative).clamp(min=0) + DOUBLE_ROUNDING


def _sorted_candidates(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Logits and token IDs of all tokens that any row may keep and one more, highest first, ties by token ID."""
    vocabulary = logits.shape[1]
    # A nucleus may be the whole vocabulary; without top-p the largest k is enough, which saves sorting the rest.
    uses_top_p = bool((params.top_p < 1).any())
    count = vocabulary if uses_top_p else min(int(params.top_k.max()) + 1, vocabulary)
    # `topk` breaks ties arbitrarily: sorting by ID first makes the stable sort break them by ID on every device.
    token_ids = logits.topk(count).indices.sort(dim=1).values
    top_logits, order = logits.gather(1, token_ids).sort(dim=1, descending=True, stable=True)
    return top_logits, token_ids.gather(1, order)
