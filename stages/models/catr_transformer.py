"""CATR's transformer encoder and decoder, and the cache of a decoder that reads a text token by token.

Follows github.com/saahiluppal/catr, models/transformer.py and models/position_encoding.py; the design is DETR's (Carion
et al. 2020, "End-to-end object detection with transformers"). Norms come before attention. Positions are added after
the norm, to queries and keys only. Dropout is left out: it has no weights, and our training uses each scene once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.shared_keys import RowsByImage

TEMPERATURE = 10000  # wavelengths of the sines grow from 1 to nearly this, as in "Attention is all you need"


def sine_positions(valid: Tensor, features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sine position embeddings of grid cells, `(B, rows, columns, features)`; `features` must be a multiple of 4.

    `valid` `(B, rows, columns)` bool is False on padding. The first half of the features encodes the row and the second
    half the column, alternating sines and cosines. Cells count from 1, and the last valid cell is a full turn.
    """
    half = features // 2
    pair = torch.arange(half, device=valid.device) // 2  # a sine and a cosine share a wavelength
    wavelengths = TEMPERATURE ** (2 * pair.to(dtype) / half)
    halves = []
    for axis in (1, 2):
        count = valid.cumsum(axis, dtype=dtype)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        # The published code adds 1e-6, against a division by 0 where all of a line is padding.
        angles = (count / (last + 1e-6) * 2 * math.pi)[..., None] / wavelengths  # (B, rows, columns, half)
        halves.append(torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2))
    return torch.cat(halves, -1)


class Attention(nn.Module):
    """Multi-head attention with the weights of `nn.MultiheadAttention` and separate access to its projections."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)

    def queries(self, x: Tensor) -> Tensor:
        """Queries `(B, heads, n, hidden / heads)` from `x` `(B, n, hidden)`; keys and values have the same shape."""
        return self._project(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._project(x, 1)

    def values(self, x: Tensor) -> Tensor:
        return self._project(x, 2)

    def output(self, mixed: Tensor) -> Tensor:
        """The output projection `(B, n, hidden)` of the heads' mixed values `(B, heads, n, hidden / heads)`."""
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, part: int) -> Tensor:
        weight = self.in_proj_weight.chunk(3)[part]
        bias = self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attention_weights(queries: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
    """The weights `(B, heads, queries, keys)`, which `scaled_dot_product_attention` does not return."""
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    return scores.softmax(-1)


class EncoderLayer(nn.Module):
    """Self-attention among the cells of an image, then a feedforward network."""

    def __init__(self, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.self_attn = Attention(hidden, heads)
        self.linear1 = nn.Linear(hidden, feedforward)
        self.linear2 = nn.Linear(feedforward, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        attention = self.self_attn
        normed = self.norm1(x)
        positioned = normed + positions
        mixed = F.scaled_dot_product_attention(
            attention.queries(positioned), attention.keys(positioned), attention.values(normed), attn_mask=valid
        )
        x = x + attention.output(mixed)
        return x + self.linear2(self.linear1(self.norm2(x)).relu())


class Encoder(nn.Module):
    """Maps `(B, cells, hidden)` to the same shape; `valid` `(B, 1, 1, cells)` is False on padding."""

    def __init__(self, layers: int, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(hidden, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, valid)
        return self.norm(x)


@dataclass
class LayerCache:
    """Keys and values of a decoder layer: of each image's cells, and of the tokens that each row has read."""

    image_keys: Tensor  # (images, heads, cells, hidden / heads); so are the values
    image_values: Tensor
    keys: Tensor | None = None  # (rows, heads, tokens, hidden / heads); so are the values
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return those of all tokens."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), 2)
            values = torch.cat((self.values, values), 2)
        self.keys = keys
        self.values = values
        return keys, values


@dataclass
class CatrCache:
    """The caches of all decoder layers."""

    layers: Sequence[LayerCache]
    valid: Tensor | None  # (images, 1, 1, cells), False on padding

    @property
    def images(self) -> int:
        return len(self.layers[0].image_keys)

    @property
    def rows(self) -> int | None:
        """The number of rows; None before the first `read`."""
        keys = self.layers[0].keys
        return None if keys is None else len(keys)

    @property
    def length(self) -> int:
        """The number of tokens that each row has read."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in this order; a row may be repeated. The images stay as they are."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys = layer.keys[rows]
                layer.values = layer.values[rows]


class DecoderLayer(nn.Module):
    """Causal self-attention among tokens, cross-attention to the image, then a feedforward network.

    `positions` `(n, hidden)` are the learned position embeddings of the tokens.
    """

    def __init__(self, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.self_attn = Attention(hidden, heads)
        self.multihead_attn = Attention(hidden, heads)
        self.linear1 = nn.Linear(hidden, feedforward)
        self.linear2 = nn.Linear(feedforward, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.norm3 = nn.LayerNorm(hidden)

    def new_cache(self, memory: Tensor, positions: Tensor) -> LayerCache:
        """The keys and values of `memory` `(images, cells, hidden)`; only keys include the cells' positions."""
        return LayerCache(self.multihead_attn.keys(memory + positions), self.multihead_attn.values(memory))

    def self_attention(self, x: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """`x` `(rows, n, hidden)` after self-attention; its keys and values are added to `cache`."""
        attention = self.self_attn
        normed = self.norm1(x)
        positioned = normed + positions
        keys, values = cache.append(attention.keys(positioned), attention.values(normed))
        new = x.shape[1]
        total = keys.shape[2]
        causal = None  # a single new token may attend to all tokens
        if new > 1:
            # Query i is token total - new + i, and attends to no later token.
            causal = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        mixed = F.scaled_dot_product_attention(attention.queries(positioned), keys, values, attn_mask=causal)
        return x + attention.output(mixed)

    def image_queries(self, x: Tensor, positions: Tensor) -> Tensor:
        """The queries of cross-attention `(rows, heads, n, hidden / heads)`, from tokens after self-attention."""
        return self.multihead_attn.queries(self.norm2(x) + positions)

    def forward(
        self, x: Tensor, positions: Tensor, cache: LayerCache, valid: Tensor | None, rows: RowsByImage
    ) -> Tensor:
        x = self.self_attention(x, positions, cache)
        queries = rows.gather(self.image_queries(x, positions))
        mixed = F.scaled_dot_product_attention(queries, cache.image_keys, cache.image_values, attn_mask=valid)
        x = x + self.multihead_attn.output(rows.scatter(mixed))
        return x + self.linear2(self.linear1(self.norm3(x)).relu())


class Decoder(nn.Module):
    """All layers on `x` `(rows, n, hidden)`, the tokens that follow those in `cache`."""

    def __init__(self, layers: int, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(hidden, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def new_cache(self, memory: Tensor, positions: Tensor, valid: Tensor | None) -> CatrCache:
        """The keys and values of `memory` `(images, cells, hidden)` in every layer, and no tokens."""
        layers = cast("Sequence[DecoderLayer]", self.layers)
        return CatrCache([layer.new_cache(memory, positions) for layer in layers], valid)

    def forward(self, x: Tensor, positions: Tensor, cache: CatrCache, rows: RowsByImage) -> Tensor:
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x = layer(x, positions, layer_cache, cache.valid, rows)
        return self.norm(x)

    def cross_attention(self, x: Tensor, positions: Tensor, cache: CatrCache, rows: RowsByImage, index: int) -> Tensor:
        """The weights `(rows, heads, n, cells)` of layer `index` over the image, for one row per image."""
        for layer, layer_cache in zip(self.layers[:index], cache.layers[:index], strict=True):
            x = layer(x, positions, layer_cache, cache.valid, rows)
        layer = cast("DecoderLayer", self.layers[index])
        layer_cache = cache.layers[index]
        queries = layer.image_queries(layer.self_attention(x, positions, layer_cache), positions)
        return attention_weights(queries, layer_cache.image_keys, cache.valid)


class Embeddings(nn.Module):
    """The normed sum of word and learned position embeddings."""

    def __init__(self, vocabulary: int, positions: int, hidden: int, pad: int, layer_norm_eps: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, hidden, padding_idx=pad)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=layer_norm_eps)

    def forward(self, tokens: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Embeddings `(rows, n, hidden)` of `tokens` `(rows, n)` at position `offset` and on.

        Also returns the position embeddings `(n, hidden)`, which every decoder layer adds again. Raises `ValueError`
        for more tokens than positions.
        """
        end = offset + tokens.shape[1]
        positions = self.position_embeddings.weight
        if end > len(positions):
            raise ValueError(f"{end} tokens, but CATR has {len(positions)} positions")
        positions = positions[offset:end]
        return self.LayerNorm(self.word_embeddings(tokens) + positions), positions
