"""The text decoders that captions come from, as the one loop of `decoding` drives them.

Each reads tokens behind those that it has read, and keeps their keys and values; an image's are computed once and
shared by all rows that are written about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.models.catr import Catr
from stages.models.catr_transformer import CatrCache


class TextDecoder(Protocol):
    """`states` are those of images, as a model's own encoder leaves them, the first dimension the images."""

    start: int
    end: int
    pad: int
    positions: int  # tokens that a text may have
    layers: int
    heads: int

    def new_cache(self, states: Tensor) -> object:
        """A cache in which nothing is read."""

    def read(self, tokens: Tensor, states: Tensor, cache: object, rows: Tensor, each: int) -> Tensor:
        """Logits `(rows, vocabulary)` behind the last of `tokens` `(rows, n)`, which the cache takes in.

        `rows` numbers the rows image by image, `each` for every one; some may be missing.
        """

    def select(self, cache: object, rows: Tensor) -> None:
        """Keep, repeat or reorder what was read."""

    def exact_logits(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Logits behind whole texts, in double precision, each of its own image in `states`."""

    def grid(self, states: Tensor) -> tuple[int, int]:
        """Rows and columns of patches among an image's tokens, of which they are the last."""

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        """Cross attention of a layer over whole texts, `(B, heads, n, image tokens)`: row i is token i's."""


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


class BlipDecoder:
    """BLIP's text decoder; `states` `(images, 1, tokens, dim)`, a grid of one line, or without that dimension."""

    def __init__(self, model: BlipTextLMHeadModel):
        self.model, config = model, model.config
        self.start, self.end, self.pad = config.bos_token_id, config.sep_token_id, config.pad_token_id
        self.positions = config.max_position_embeddings
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads

    @cached_property
    def exact(self) -> BlipTextLMHeadModel:
        """The same decoder in double precision."""
        return deepcopy(self.model).double()

    def new_cache(self, states: Tensor) -> EncoderDecoderCache:
        config = self.model.config
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    def read(self, tokens: Tensor, states: Tensor, cache: EncoderDecoderCache, rows: Tensor, each: int) -> Tensor:
        asked = {"encoder_hidden_states": _line(states), "past_key_values": cache, "use_cache": True}
        with images_shared(self.model, rows, len(states), each):
            return self.model(tokens, **asked, logits_to_keep=1).logits[:, -1]

    def select(self, cache: EncoderDecoderCache, rows: Tensor) -> None:
        cache.self_attention_cache.batch_select_indices(rows)

    def exact_logits(self, tokens: Tensor, states: Tensor) -> Tensor:
        return self.exact(tokens, encoder_hidden_states=_line(states).double(), logits_to_keep=1).logits[:, -1]

    def grid(self, states: Tensor) -> tuple[int, int]:
        patches = _line(states).shape[1] - 1  # a class token before them; BLIP sees squares
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(f"{patches + 1} image tokens are no class token and a square of patches")
        return side, side

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        asked = {"encoder_hidden_states": _line(states), "output_attentions": True}
        return self.model(tokens, **asked).cross_attentions[layer]

    @torch.inference_mode()
    def beam_search(
        self, states: Tensor, prompt: list[int], beams: int, shortest: int, longest: int
    ) -> list[list[int]]:
        """Beam search by transformers' own `generate`: whole rows, the token before the prompt and the prompt first."""
        first = torch.tensor([[self.start, *prompt]], device=states.device).expand(len(states), -1)
        found = self.model.generate(
            first,
            encoder_hidden_states=_line(states),
            num_beams=beams,
            do_sample=False,
            min_length=shortest,
            max_length=longest,
            eos_token_id=self.end,
            pad_token_id=self.pad,
        )
        return found.tolist()


def _line(states: Tensor) -> Tensor:
    return states.flatten(1, -2)


class CatrDecoder:
    """CATR's text decoder; `states` `(images, rows, columns, hidden)` are its encoder's."""

    def __init__(self, model: Catr):
        self.model, self.positions = model, model.config.positions
        self.layers, self.heads = model.config.decoder_layers, model.config.heads
        self.start, self.end, self.pad = model.start, model.end, model.pad

    @cached_property
    def exact(self) -> Catr:
        """The same model in double precision."""
        return deepcopy(self.model).double()

    def new_cache(self, states: Tensor) -> CatrCache:
        return self.model.new_cache(states)

    def read(self, tokens: Tensor, states: Tensor, cache: CatrCache, rows: Tensor, each: int) -> Tensor:
        return self.model.read(tokens, cache, rows // each)

    def select(self, cache: CatrCache, rows: Tensor) -> None:
        cache.select(rows)

    def exact_logits(self, tokens: Tensor, states: Tensor) -> Tensor:
        return self.exact.logits(tokens, states.double())

    def grid(self, states: Tensor) -> tuple[int, int]:
        return states.shape[1], states.shape[2]

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        return self.model.cross_attention(tokens, states, layer)
