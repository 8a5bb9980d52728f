"""Generate captions of many images by many decoding methods in one batch, with cached keys and values.

For every image and cell (decoding method and prompt), the caption `w` follows from its own random numbers `u`:

    w[t] = sample(logits(w[:t], image), params of the cell, u[t])        see `sampling.py`

Three things make this fast, and none of them changes a caption:
- All cells of all images are rows of one batch. An image's keys and values are computed once and shared by its rows.
- A prompt is read once per image; then its keys and values are copied to the rows that start with it.
- Rows that have ended leave the batch.

A caption ends at its end token. With `stop = "batch"` it runs on, as in the original: its greedy and sampling loops end
only when all images of their batch have ended, and its decoding drops special tokens, not what follows them. So a
caption has all tokens up to the position where the last image of its batch and cell has ended. Tokens after the end
token are sampled like those before it, from the whole text so far.

Batched and cached float32 logits differ from those of a single caption by rounding, as they do between CPUs. So every
choice that a difference of `LOGIT_ERROR` could change is repeated from the whole text without a cache, in double
precision. That is why captions do not depend on the batch, and are equal on different CPUs.

Plain equivalent: one `generate` call per cell. `tests/captioning/test_decoding.py` compares greedy captions with
transformers' `generate` (`test_greedy_captions_equal_transformers_generate`), and every cell's, with both values of
`stop`, with a loop that reads the whole text anew for each token
(`test_batched_cached_decoding_equals_reading_the_whole_text_anew`).
Measured gain (`benchmarks/captioning.py`, 11 cells x 192 images, 2 CPU cores): 17.3 s -> 1.6 s, 10.9 times faster;
transformers' own key-value cache alone gives 1.3 times.

Beam search is transformers' own, one cell at a time, without the double-precision check, and always ends at the end
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.captioning.sampling import SamplingParams, sample_next
from stages.captioning.text_decoders import BlipDecoder, TextDecoder
from stages.params.captioning import Cell, Stop

LOGIT_ERROR = 1e-4  # more than float32 rounding moves the difference of two logits
COMPACT_BELOW = 0.75  # drop finished rows once at most this share is unfinished: copying the cache costs time, too


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, start token and prompt included: no end before `shortest`, none after `longest`."""

    shortest: int
    longest: int


def caption_tokens(sequence: list[int], prompt_length: int, end: int) -> list[int]:
    """The tokens after the first `prompt_length`, up to the end token if any."""
    tokens = sequence[prompt_length:]
    return tokens[: tokens.index(end)] if end in tokens else tokens


def batch_caption_tokens(sequences: Sequence[list[int]], prompt_length: int, end: int) -> list[list[int]]:
    """The tokens after the first `prompt_length` of each sequence, up to where the last sequence has ended.

    The position of that end token belongs to all captions, so every caption that has ended contains its end token.
    """
    length = 1 + max(len(caption_tokens(sequence, prompt_length, end)) for sequence in sequences)
    return [sequence[prompt_length : prompt_length + length] for sequence in sequences]


class CaptionGenerator:
    """Generates token IDs without the prompt.

    Captions have no special tokens, except that with `stop = "batch"` they contain the end token and, since nothing
    forbids them there, perhaps further special tokens.
    """

    def __init__(self, decoder: TextDecoder, lengths: Lengths, stop: Stop = "end_token"):
        self.decoder = decoder
        self.lengths = lengths
        self.stop = stop

    @torch.inference_mode()
    def sample(
        self, states: Tensor, prompts: Sequence[list[int]], cells: Sequence[Cell], uniform: np.ndarray
    ) -> list[list[int]]:
        """Captions of every image and cell: all cells of the first image, then of the second, and so on.

        `states` are the decoder's, images first; with `stop = "batch"`, they are one batch. `prompts` has one prompt
        per cell, all of one length. A cell may be repeated, to decode it with several seeds. `uniform`
        `(images, cells, longest)` holds the random numbers of each caption, one per position.
        """
        device = states.device
        num_images, num_cells = len(states), len(cells)
        prompt_length = 1 + len(prompts[0])
        streams = torch.from_numpy(uniform).flatten(0, 1).to(device)  # (rows, longest), row = image * cells + cell
        params = SamplingParams.from_cells(cells, device)[torch.arange(num_cells, device=device).repeat(num_images)]
        sequences = torch.full((len(streams), self.lengths.longest), self.decoder.pad, device=device)
        sequences[:, 0] = self.decoder.start
        sequences[:, 1:prompt_length] = torch.tensor(prompts, dtype=torch.long, device=device).repeat(num_images, 1)

        logits, cache = self._prefill(states, prompts)
        active_rows = torch.arange(len(sequences), device=device)  # rows still in the batch
        ended = torch.zeros(len(sequences), dtype=torch.bool, device=device)  # rows with an end token
        finished = ended  # rows that need no more tokens
        for position in range(prompt_length, self.lengths.longest):
            next_tokens, certain = sample_next(
                self._mask_end(logits, position), params[active_rows], streams[active_rows, position], LOGIT_ERROR
            )
            certain |= finished[active_rows]  # further tokens are cut off, so they need no check
            uncertain_rows = active_rows[~certain]
            if len(uncertain_rows):
                exact = self.decoder.next_logits_float64(
                    sequences[uncertain_rows, :position], states[uncertain_rows // num_cells]
                )
                next_tokens[~certain], _ = sample_next(
                    self._mask_end(exact, position), params[uncertain_rows], streams[uncertain_rows, position], 0
                )
            sequences[active_rows, position] = next_tokens
            ended[active_rows] |= next_tokens == self.decoder.end
            if self.stop == "batch":
                finished = ended.view(num_images, num_cells).all(0).repeat(num_images)
            unfinished = (~finished[active_rows]).nonzero()[:, 0]  # indices into active_rows, as the cache counts
            if not len(unfinished) or position + 1 == self.lengths.longest:
                break
            if len(unfinished) <= COMPACT_BELOW * len(active_rows):
                self.decoder.select_rows(cache, unfinished)
                active_rows = active_rows[unfinished]
            last_tokens = sequences[active_rows, position][:, None]
            logits = self.decoder.next_logits(last_tokens, states, cache, active_rows, num_cells)
        texts = sequences.tolist()
        if self.stop == "end_token":
            return [caption_tokens(text, prompt_length, self.decoder.end) for text in texts]
        captions: list[list[int]] = [[]] * len(texts)
        for cell in range(num_cells):
            captions[cell::num_cells] = batch_caption_tokens(texts[cell::num_cells], prompt_length, self.decoder.end)
        return captions

    def _prefill(self, states: Tensor, prompts: Sequence[list[int]]) -> tuple[Tensor, Any]:
        """Logits after every row's prompt, and the cache with its keys and values."""
        device = states.device
        images = torch.arange(len(states), device=device)
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        cache = self.decoder.new_cache(states)
        # The start token is the same for all prompts: read it once per image.
        start = torch.full((len(states), 1), self.decoder.start, device=device)
        logits = self.decoder.next_logits(start, states, cache, images, 1)
        if distinct != [()]:
            # Then each distinct prompt once per image: row = image * distinct prompts + prompt.
            self.decoder.select_rows(cache, images.repeat_interleave(len(distinct)))
            prompt_tokens = torch.tensor(distinct, device=device).repeat(len(states), 1)
            rows = torch.arange(len(prompt_tokens), device=device)
            logits = self.decoder.next_logits(prompt_tokens, states, cache, rows, len(distinct))
        # Copy to the rows of `sample`, one per image and cell.
        prompt_of_cell = torch.tensor([distinct.index(tuple(prompt)) for prompt in prompts], device=device)
        source_rows = (images[:, None] * len(distinct) + prompt_of_cell).flatten()
        self.decoder.select_rows(cache, source_rows)
        return logits[source_rows], cache

    def _mask_end(self, logits: Tensor, position: int) -> Tensor:
        """`logits` without the end token while the caption is too short."""
        if position >= self.lengths.shortest:
            return logits
        return logits.index_fill(1, torch.tensor([self.decoder.end], device=logits.device), -torch.inf)

    def beam_search(self, states: Tensor, prompt: list[int], beams: int) -> list[list[int]]:
        """One caption per image by beam search, with BLIP's decoder only."""
        assert isinstance(self.decoder, BlipDecoder)  # `Captioner.prompts` refuses beam search for others
        shortest, longest = self.lengths.shortest, self.lengths.longest
        sequences = self.decoder.beam_search(states, prompt, beams, shortest, longest)
        return [caption_tokens(row, 1 + len(prompt), self.decoder.end) for row in sequences]
