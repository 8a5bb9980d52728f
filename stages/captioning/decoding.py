"""Captions from a text decoder and cached image states: many ways of decoding in one batch, keys and values kept.

An image's keys and values are computed once, a prompt is read once for every image; then all cells go on together, a
row each. A row draws from a random stream of its own, and a choice that lies closer than single precision can tell is
made again in double precision: so no row's text hangs on which others shared its batch, or on the device. Beam search
is transformers' own, without that care.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.captioning.sampling import KEEP_ALL, SamplingParams, sample_next
from stages.captioning.text_decoders import TextDecoder
from stages.params.captioning import Cell

ERROR = 1e-4  # more than single precision moves a logit
THINNED = 0.75  # finished rows leave the batch when no more than this share is still being written


@dataclass(frozen=True)
class Lengths:
    """In tokens, the prompt and the token before it included: no end before `shortest`, none beyond `longest`."""

    shortest: int
    longest: int


def sampling_params(cells: Sequence[Cell], device: torch.device) -> SamplingParams:
    """Greedy and sampling cells as rules, one a cell."""
    return SamplingParams(
        torch.tensor([1 if cell.type == "greedy" else cell.k or KEEP_ALL for cell in cells], device=device),
        torch.tensor([cell.temperature or 1.0 for cell in cells], dtype=torch.float64, device=device),
        torch.tensor([cell.p or 1.0 for cell in cells], dtype=torch.float64, device=device),
    )


class CaptionGenerator:
    """Prompts and results are token ids without special tokens; a text stops at the language's end."""

    def __init__(self, decoder: TextDecoder, lengths: Lengths):
        self.decoder, self.lengths = decoder, lengths
        self.start, self.end, self.pad = decoder.start, decoder.end, decoder.pad

    @torch.inference_mode()
    def sample(
        self, states: Tensor, prompts: Sequence[list[int]], cells: Sequence[Cell], uniform: np.ndarray
    ) -> list[list[int]]:
        """Texts of every image's every cell, image by image, without the prompt.

        `states` are the language's, images first; `prompts` holds each cell's, all of one length; `uniform` `(images,
        cells, longest)` holds every row's random stream.
        """
        images, device = len(states), states.device
        streams = torch.from_numpy(uniform).flatten(0, 1).to(device)
        rules = sampling_params(cells, device)[torch.arange(len(cells), device=device).repeat(images)]
        written = torch.full((len(streams), self.lengths.longest), self.pad, device=device)
        prompted = 1 + len(prompts[0])
        written[:, 0] = self.start
        written[:, 1:prompted] = torch.tensor(prompts, dtype=torch.long, device=device).repeat(images, 1)
        logits, cache = self._prefill(states, prompts)
        going = torch.arange(len(written), device=device)  # rows still in the batch
        ended = torch.zeros(len(written), dtype=torch.bool, device=device)
        for place in range(prompted, self.lengths.longest):
            before = written[:, :place]
            written[going, place] = self._pick(logits, going, ended, before, states, rules, streams[:, place])
            ended[going] |= written[going, place] == self.end
            unfinished = (~ended[going]).nonzero()[:, 0]
            if not len(unfinished) or place + 1 == self.lengths.longest:
                break
            if len(unfinished) <= THINNED * len(going):
                self.decoder.select(cache, unfinished)
                going = going[unfinished]
            logits = self.decoder.read(written[going, place][:, None], states, cache, going, len(cells))
        return [self._text(row, prompted) for row in written.tolist()]

    def _prefill(self, states: Tensor, prompts: Sequence[list[int]]) -> tuple[Tensor, object]:
        """Logits behind each row's prompt, and what has been read: images once, each distinct prompt once an image."""
        distinct = [list(one) for one in dict.fromkeys(map(tuple, prompts))]
        cache, rows = self.decoder.new_cache(states), torch.arange(len(states), device=states.device)
        start = torch.full((len(states), 1), self.start, device=states.device)
        logits = self.decoder.read(start, states, cache, rows, 1)
        if distinct != [[]]:
            self.decoder.select(cache, rows.repeat_interleave(len(distinct)))
            told = torch.tensor(distinct, device=states.device).repeat(len(states), 1)
            everyone = torch.arange(len(told), device=states.device)
            logits = self.decoder.read(told, states, cache, everyone, len(distinct))
        place = torch.tensor([distinct.index(list(one)) for one in prompts], device=states.device)
        first = (rows[:, None] * len(distinct) + place).flatten()
        self.decoder.select(cache, first)
        return logits[first], cache

    def beam_search(self, states: Tensor, prompt: list[int], beams: int) -> list[list[int]]:
        """Beam search over `states`, where the language has one."""
        rows = self.decoder.beam_search(states, prompt, beams, self.lengths.shortest, self.lengths.longest)
        return [self._text(row, 1 + len(prompt)) for row in rows]

    def _pick(
        self,
        logits: Tensor,
        going: Tensor,
        ended: Tensor,
        before: Tensor,
        states: Tensor,
        rules: SamplingParams,
        uniform: Tensor,
    ) -> Tensor:
        """The next token of the rows `going`; what is not sure, and not over, is chosen again from exact logits."""
        chosen, sure = sample_next(self._allowed(logits, before), rules[going], uniform[going], ERROR)
        sure |= ended[going]
        if not bool(sure.all()):
            rows = going[~sure]
            images = states[rows // (len(before) // len(states))]
            exact = self.decoder.exact_logits(before[rows], images)
            chosen[~sure] = sample_next(self._allowed(exact, before), rules[rows], uniform[rows], 0)[0]
        return chosen

    def _allowed(self, logits: Tensor, before: Tensor) -> Tensor:
        """No end while the text is too short."""
        if before.shape[1] >= self.lengths.shortest:
            return logits
        return logits.index_fill(1, torch.tensor([self.end], device=logits.device), -torch.inf)

    def _text(self, row: list[int], prompted: int) -> list[int]:
        tokens = row[prompted:]
        return tokens[: tokens.index(self.end)] if self.end in tokens else tokens
