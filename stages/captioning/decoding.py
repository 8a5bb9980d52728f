"""Captions from BLIP's decoder and cached image states: many ways of decoding in one batch, keys and values kept.

An image's keys and values are computed once, a prompt is read once for every image; then all cells go on together, a
row each. A row draws from a random stream of its own, and a choice that lies closer than single precision can tell is
made again in double precision: so no row's text hangs on which others shared its batch, or on the device. Beam search
is transformers' own, without that care.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def images_shared(model: BlipTextLMHeadModel, rows: Tensor, images: int, each: int) -> Iterator[None]:
    """Let all rows of an image read one copy of its keys and values: they become one image's queries, side by side.

    `rows` numbers the rows in the batch image by image, `each` for every one; some may be missing. Copies for every
    row would take 40 MB a row with BLIP-base, and most of a small one's time.
    """

    def gather(_, asked: tuple, settings: dict) -> tuple[tuple, dict]:
        hidden, *others = asked
        wide = hidden.new_zeros(images * each, *hidden.shape[1:])
        wide[rows] = hidden
        return (wide.view(images, each * hidden.shape[1], hidden.shape[2]), *others), settings

    def spread(_, asked: tuple, found: tuple) -> tuple:
        return found[0].view(images * each, -1, found[0].shape[2])[rows], *found[1:]

    attentions = [layer.crossattention for layer in model.bert.encoder.layer]
    handles = [one.register_forward_pre_hook(gather, with_kwargs=True) for one in attentions]
    handles += [one.register_forward_hook(spread) for one in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
            before = written[:, :place]
            written[going, place] = self._pick(logits, going, ended, before, states, rules, streams[:, place])
            ended[going] |= written[going, place] == self.end
            unfinished = (~ended[going]).nonzero()[:, 0]
            if not len(unfinished) or place + 1 == self.lengths.longest:
                break
            if len(unfinished) <= THINNED * len(going):
                cache.self_attention_cache.batch_select_indices(unfinished)
                going = going[unfinished]
            logits = self._read(written[going, place][:, None], states, cache, going, len(cells))
        return [self._text(row, prompted) for row in written.tolist()]

    def _prefill(self, states: Tensor, prompts: Sequence[list[int]]) -> tuple[Tensor, EncoderDecoderCache]:
        """Logits behind each row's prompt, and what has been read: images once, each distinct prompt once an image."""
        config, distinct = self.model.config, [list(one) for one in dict.fromkeys(map(tuple, prompts))]
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        rows = torch.arange(len(states), device=states.device)
        logits = self._read(torch.full((len(states), 1), self.start, device=states.device), states, cache, rows)
        if distinct != [[]]:
            cache.self_attention_cache.batch_repeat_interleave(len(distinct))
            told = torch.tensor(distinct, device=states.device).repeat(len(states), 1)
            everyone = torch.arange(len(told), device=states.device)
            logits = self._read(told, states, cache, everyone, len(distinct))
        place = torch.tensor([distinct.index(list(one)) for one in prompts], device=states.device)
        first = (rows[:, None] * len(distinct) + place).flatten()
        cache.self_attention_cache.batch_select_indices(first)
        return logits[first], cache

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

    def _read(self, tokens: Tensor, states: Tensor, cache: EncoderDecoderCache, rows: Tensor, each: int = 1) -> Tensor:
        """Logits `(rows, vocabulary)` behind the last of `tokens`; `rows` and `each` as in `images_shared`."""
        asked = {"encoder_hidden_states": states, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        with images_shared(self.model, rows, len(states), each):
            return self.model(tokens, **asked).logits[:, -1]

    def _pick(
        self,
        logits: Tensor,
        going: Tensor,
        ended: Tensor,
        before: Tensor,
        states: Tensor,
        rules: Rules,
        uniform: Tensor,
    ) -> Tensor:
        """The next token of the rows `going`; what is not sure, and not over, is chosen again from exact logits."""
        chosen, sure = choose(self._allowed(logits, before), rules[going], uniform[going], ERROR)
        sure |= ended[going]
        if not bool(sure.all()):
            rows = going[~sure]
            images = states[rows // (len(before) // len(states))].double()
            exact = self.exact(before[rows], encoder_hidden_states=images, logits_to_keep=1).logits[:, -1]
            chosen[~sure] = choose(self._allowed(exact, before), rules[rows], uniform[rows], 0)[0]
        return chosen

    def _allowed(self, logits: Tensor, before: Tensor) -> Tensor:
        """No end while the text is too short."""
        if before.shape[1] >= self.lengths.shortest:
            return logits
        return logits.index_fill(1, torch.tensor([self.end], device=logits.device), -torch.inf)

    def _text(self, row: list[int], prompted: int) -> list[int]:
        tokens = row[prompted:]
        return tokens[: tokens.index(self.end)] if self.end in tokens else tokens
