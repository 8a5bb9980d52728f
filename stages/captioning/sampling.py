"""The next token of each row, each by its own rule: greedy, top-K or top-p sampling at its own temperature."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

KEEP_ALL = 2**31 - 1  # a K that keeps the whole vocabulary


@dataclass(frozen=True)
class SamplingParams:
    """One row's rule in each place, all `(rows,)`: keep the `k` likeliest of logits / `temperature`, of those as many
    as reach probability `p`, and sample. Greedy is `k` 1.
    """

    k: Tensor
    temperature: Tensor
    p: Tensor

    def __getitem__(self, rows: Tensor) -> "SamplingParams":
        return SamplingParams(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample_next(logits: Tensor, rules: SamplingParams, uniform: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Token ids `(rows,)` from `logits` `(rows, vocabulary)`, and whether each is sure.

    A row samples by inverting its cumulative distribution, in the order of token ids, at its number in `uniform`
    (`(rows,)`, 0..1). It is sure where logits that differ by less than `error` could not have chosen otherwise.
    """
    scores, ids = _likeliest(logits, rules)
    scores = scores.double() / rules.temperature[:, None]
    slack = (error / rules.temperature)[:, None]  # of scores, and so at most of a probability's logarithm
    rank = torch.arange(scores.shape[1], device=logits.device)
    last = (rules.k - 1).clamp(max=scores.shape[1] - 2)[:, None]  # the last one kept, if any is not
    gap = scores.gather(1, last) - scores.gather(1, last + 1)
    k_sure = (gap > slack) | (rules.k >= logits.shape[1])[:, None]

    shares = scores.masked_fill(rank >= rules.k[:, None], -torch.inf).softmax(1)
    reached = shares.cumsum(1) - shares  # by the likelier ones
    kept = (reached < rules.p[:, None]) | (rank == 0)
    count = kept.sum(1, keepdim=True).clamp(max=scores.shape[1] - 1)
    gap = scores.gather(1, count - 1) - scores.gather(1, count)
    p_sure = ((reached - rules.p[:, None]).abs() > _moved(reached, slack)) & (gap > slack)
    p_sure |= (rules.p == 1)[:, None]

    by_id = ids.argsort(1)
    shares = shares.masked_fill(~kept, 0).gather(1, by_id)
    edges = shares.cumsum(1) / shares.sum(1, keepdim=True)
    place = torch.searchsorted(edges, uniform[:, None].double(), right=True).clamp(max=edges.shape[1] - 1)
    inner = edges.masked_fill(edges > 1 - 1e-12, torch.inf)  # nothing lies beyond the last edge
    draw_sure = (inner - uniform[:, None]).abs() > _moved(edges, slack)
    return ids.gather(1, by_id.gather(1, place))[:, 0], (k_sure & p_sure & draw_sure).all(1)


def _moved(cumulative: Tensor, slack: Tensor) -> Tensor:
    """How far a cumulative probability can move when every score moves by no more than `slack`."""
    return 2 * slack * cumulative * (1 - cumulative).clamp(min=0) + 1e-12


def _likeliest(logits: Tensor, rules: SamplingParams) -> tuple[Tensor, Tensor]:
    """Logits and ids, likeliest first, of all that any row may keep and one more; equal ones in the order of ids."""
    vocabulary = logits.shape[1]
    count = vocabulary if bool((rules.p < 1).any()) else min(int(rules.k.max()) + 1, vocabulary)
    ids = logits.topk(count).indices.sort(dim=1).values
    scores, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return scores, ids.gather(1, order)
