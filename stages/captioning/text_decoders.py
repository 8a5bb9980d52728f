"""Text decoders behind one interface, `TextDecoder`, which `decoding.py` drives.

A decoder caches the keys and values of the tokens it has read. Those of an image are computed once and shared by all
rows (captions) of that image. Rows are numbered image by image, `rows_per_image` for each; some may be missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.models.catr import Catr
from stages.models.catr_transformer import CatrCache
from stages.models.shared_keys import RowsByImage


class TextDecoder(Protocol):
    """`states` are the outputs of the model's own image encoder, images first."""

    @property
    def model(self) -> nn.Module:
        """The model that computes the logits."""

    start: int  # token IDs
    end: int
    pad: int
    positions: int  # the maximum number of tokens
    layers: int
    heads: int

    def new_cache(self, states: Tensor) -> Any:
        """An empty cache for `states`."""

    def next_logits(self, tokens: Tensor, states: Tensor, cache: Any, rows: Tensor, rows_per_image: int) -> Tensor:
        """Logits `(R, vocabulary)` after the last of `tokens` `(R, n)`, whose keys and values go into `cache`.

        `rows` `(R,)` are the sorted numbers of the rows in the batch: row `r` belongs to image `r // rows_per_image`.
        """

    def select_rows(self, cache: Any, rows: Tensor) -> None:
        """Drop, repeat or reorder cached rows; `rows` are indices into the current ones."""

    def next_logits_float64(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Logits `(R, vocabulary)` after whole texts, in double precision; `states` has one entry per text."""

    def grid(self, states: Tensor) -> tuple[int, int]:
        """Rows and columns of image patches, which are the last of an image's tokens."""

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        """Attention of a layer from text to image, `(B, heads, n, image tokens)`, for whole texts `(B, n)`."""


@contextmanager
def images_shared(model: BlipTextLMHeadModel, layout: RowsByImage) -> Iterator[None]:
    """Within the context, BLIP's cross attention reads each image's keys and values once for all of its rows.

    transformers expects one image per row: hooks put the rows of an image side by side before cross attention, and
    take them apart after it (see `stages/models/shared_keys.py`).
    """

    def gather(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden, *rest = args
        return (layout.gather(hidden), *rest), kwargs

    def scatter(_: nn.Module, args: tuple, output: tuple) -> tuple:
        hidden, *rest = output
        return layout.scatter(hidden), *rest

    handles = []
    for layer in model.bert.encoder.layer:
        attention = layer.get_submodule("crossattention")
        handles.append(attention.register_forward_pre_hook(gather, with_kwargs=True))
        handles.append(attention.register_forward_hook(scatter))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class BlipDecoder:
    """BLIP's text decoder. `states` are `(images, 1, tokens, dim)`, as the feature table has them, or without the 1."""

    def __init__(self, model: BlipTextLMHeadModel):
        config: Any = model.config  # its type has optional token IDs
        self.model = model
        self.start = config.bos_token_id
        self.end = config.sep_token_id
        self.pad = config.pad_token_id
        self.positions = config.max_position_embeddings
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads

    @cached_property
    def model_float64(self) -> BlipTextLMHeadModel:
        """The same decoder in double precision, built on first use."""
        return deepcopy(self.model).double()

    def new_cache(self, states: Tensor) -> EncoderDecoderCache:
        config = self.model.config
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    def next_logits(
        self, tokens: Tensor, states: Tensor, cache: EncoderDecoderCache, rows: Tensor, rows_per_image: int
    ) -> Tensor:
        with images_shared(self.model, RowsByImage(len(states), rows_per_image, rows)):
            states = _flatten_grid(states)
            output = self.model(
                tokens, encoder_hidden_states=states, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return output.logits[:, -1]

    def select_rows(self, cache: EncoderDecoderCache, rows: Tensor) -> None:
        # The cross-attention cache has one entry per image and stays.
        cache.self_attention_cache.batch_select_indices(rows)

    def next_logits_float64(self, tokens: Tensor, states: Tensor) -> Tensor:
        states = _flatten_grid(states).double()
        return self.model_float64(tokens, encoder_hidden_states=states, logits_to_keep=1).logits[:, -1]

    def grid(self, states: Tensor) -> tuple[int, int]:
        patches = _flatten_grid(states).shape[1] - 1  # the class token comes first
        side = round(patches**0.5)  # BLIP's images are square
        if side * side != patches:
            raise ValueError(f"{patches + 1} image tokens; expected a class token and a square grid of patches")
        return side, side

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        output = self.model(tokens, encoder_hidden_states=_flatten_grid(states), output_attentions=True)
        return output.cross_attentions[layer]

    @torch.inference_mode()
    def beam_search(
        self, states: Tensor, prompt: list[int], beams: int, shortest: int, longest: int
    ) -> list[list[int]]:
        """Whole sequences by transformers' `generate`: start token, prompt, caption, then end and padding if any."""
        tokens = torch.tensor([[self.start, *prompt]], device=states.device).expand(len(states), -1)
        sequences = self.model.generate(  # type: ignore[misc]  # the mixin's self type lacks BLIP's text model
            tokens,
            encoder_hidden_states=_flatten_grid(states),
            num_beams=beams,
            do_sample=False,
            min_length=shortest,
            max_length=longest,
            eos_token_id=self.end,
            pad_token_id=self.pad,
        )
        assert isinstance(sequences, Tensor)  # not a dict of outputs, which the config could ask for
        return sequences.tolist()


def _flatten_grid(states: Tensor) -> Tensor:
    """`(images, tokens, dim)` of states with or without a grid."""
    return states.flatten(1, -2)


class CatrDecoder:
    """CATR's text decoder. `states` are `(images, rows, columns, hidden)`."""

    def __init__(self, model: Catr):
        self.model = model
        self.start = model.start
        self.end = model.end
        self.pad = model.pad
        self.positions = model.config.positions
        self.layers = model.config.decoder_layers
        self.heads = model.config.heads

    @cached_property
    def model_float64(self) -> Catr:
        """The same model in double precision, built on first use."""
        return deepcopy(self.model).double()

    def new_cache(self, states: Tensor) -> CatrCache:
        return self.model.new_cache(states)

    def next_logits(
        self, tokens: Tensor, states: Tensor, cache: CatrCache, rows: Tensor, rows_per_image: int
    ) -> Tensor:
        return self.model.read(tokens, cache, rows // rows_per_image)

    def select_rows(self, cache: CatrCache, rows: Tensor) -> None:
        cache.select(rows)

    def next_logits_float64(self, tokens: Tensor, states: Tensor) -> Tensor:
        return self.model_float64.logits(tokens, states.double())

    def grid(self, states: Tensor) -> tuple[int, int]:
        return states.shape[1], states.shape[2]

    def cross_attention(self, tokens: Tensor, states: Tensor, layer: int) -> Tensor:
        return self.model.cross_attention(tokens, states, layer)
