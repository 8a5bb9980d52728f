"""Captions from BLIP's decoder and cached image states: many ways of decoding in one batch, keys and values kept.

An image's keys and values are computed once, a prompt is read once for every image; then all cells go on together, a
row each. A row draws from a random stream of its own, and a choice that lies closer than single precision can tell is
made again in double precision, alone: so no row's text hangs on which others shared its batch, or on the device.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.captioning.choosing import EVERY, Rules, choose
from stages.params.captioning import Cell

ERROR = 1e-4  # more than single precision moves a logit
THINNED = 0.75  # finished rows leave the batch when no more than this share is still being written


@dataclass(frozen=True)
class Lengths:
    """In tokens, the prompt and the token before it included: no end before `shortest`, none beyond `longest`."""

    shortest: int
    longest: int


def rules_of(cells: Sequence[Cell], device: torch.device) -> Rules:
    """Greedy and sampling cells as rules, one a cell."""
    return Rules(
        torch.tensor([1 if cell.type == "greedy" else cell.k or EVERY for cell in cells], device=device),
        torch.tensor([cell.temperature or 1.0 for cell in cells], dtype=torch.float64, device=device),
        torch.tensor([cell.p or 1.0 for cell in cells], dtype=torch.float64, device=device),
    )


class Decoder:
    """Prompts and results are token ids without special tokens; a text stops at `config.sep_token_id`."""

    def __init__(self, model: BlipTextLMHeadModel, lengths: Lengths):
        self.model, self.lengths = model, lengths
        self.start, self.end, self.pad = model.config.bos_token_id, model.config.sep_token_id, model.config.pad_token_id

    @cached_property
    def exact(self) -> BlipTextLMHeadModel:
        """The same decoder in double precision."""
        return deepcopy(self.model).double()

    @torch.inference_mode()
    def sample(
        self, states: Tensor, prompts: Sequence[list[int]], cells: Sequence[Cell], uniform: np.ndarray
    ) -> list[list[int]]:
        """Texts of every image's every cell, image by image, without the prompt.

        `states` `(images, tokens, dim)`; `prompts` holds each cell's, all of one length; `uniform` `(images, cells,
        longest)` holds every row's random stream.
        """
        images, device = len(states), states.device
        streams = torch.from_numpy(uniform).flatten(0, 1).to(device)
        rules = rules_of(cells, device)[torch.arange(len(cells), device=device).repeat(images)]
        written = torch.full((len(streams), self.lengths.longest), self.pad, device=device)
        prompted = 1 + len(prompts[0])
        written[:, 0] = self.start
        written[:, 1:prompted] = torch.tensor(prompts, dtype=torch.long, device=device).repeat(images, 1)
        logits, cache = self._prefill(states, prompts)
        going = torch.arange(len(written), device=device)  # rows still in the batch
        ended = torch.zeros(len(written), dtype=torch.bool, device=device)
        for place in range(prompted, self.lengths.longest):
            written[going, place] = self._pick(logits, going, written[:, :place], states, rules, streams[:, place])
            ended[going] |= written[going, place] == self.end
            unfinished = (~ended[going]).nonzero()[:, 0]
            if not len(unfinished):
                break
            if len(unfinished) <= THINNED * len(going):
                cache.batch_select_indices(unfinished)
                going = going[unfinished]
            logits = self._read(written[going, place][:, None], states, cache)
        return [self._text(row, prompted) for row in written.tolist()]

    def _prefill(self, states: Tensor, prompts: Sequence[list[int]]) -> tuple[Tensor, EncoderDecoderCache]:
        """Logits behind each row's prompt, and what has been read: images once, each distinct prompt once an image."""
        config, distinct = self.model.config, [list(one) for one in dict.fromkeys(map(tuple, prompts))]
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        logits = self._read(torch.full((len(states), 1), self.start, device=states.device), states, cache)
        if distinct == [[]]:
            first = torch.arange(len(states), device=states.device)[:, None]
        else:
            cache.batch_repeat_interleave(len(distinct))
            told = torch.tensor(distinct, device=states.device).repeat(len(states), 1)
            logits = self._read(told, states, cache)
            first = torch.arange(len(told), device=states.device).unflatten(0, (len(states), len(distinct)))
        rows = first[:, [distinct.index(list(one)) for one in prompts]].flatten()
        cache.batch_select_indices(rows)
        return logits[rows], cache

    @torch.inference_mode()
    def search(self, states: Tensor, prompt: list[int], beams: int) -> list[list[int]]:
        """Beam search over `states` `(images, tokens, dim)`, by transformers' own `generate`."""
        first = torch.tensor([[self.start, *prompt]], device=states.device).expand(len(states), -1)
        found = self.model.generate(
            first,
            encoder_hidden_states=states,
            num_beams=beams,
            do_sample=False,
            min_length=self.lengths.shortest,
            max_length=self.lengths.longest,
            eos_token_id=self.end,
            pad_token_id=self.pad,
        )
        return [self._text(row, first.shape[1]) for row in found.tolist()]

    def _read(self, tokens: Tensor, states: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """Logits `(rows, vocabulary)` behind the last of `tokens`; the image is read from `cache` once it is there."""
        read = self.model(tokens, encoder_hidden_states=states, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return read.logits[:, -1]

    def _pick(self, logits: Tensor, going: Tensor, before: Tensor, states: Tensor, rules: Rules, uniform: Tensor):
        """The next token of the rows `going`; what is not sure is chosen again from exact logits."""
        chosen, sure = choose(self._allowed(logits, before), rules[going], uniform[going], ERROR)
        for unsure in (~sure).nonzero()[:, 0]:
            row = going[unsure]
            image = states[row // (len(before) // len(states))][None].double()
            exact = self.exact(before[row][None], encoder_hidden_states=image, logits_to_keep=1).logits[:, -1]
            chosen[unsure] = choose(self._allowed(exact, before), rules[row[None]], uniform[row[None]], 0)[0][0]
        return chosen

    def _allowed(self, logits: Tensor, before: Tensor) -> Tensor:
        """No end while the text is too short."""
        if before.shape[1] >= self.lengths.shortest:
            return logits
        return logits.index_fill(1, torch.tensor([self.end], device=logits.device), -torch.inf)

    def _text(self, row: list[int], prompted: int) -> list[int]:
        tokens = row[prompted:]
        return tokens[: tokens.index(self.end)] if self.end in tokens else tokens
