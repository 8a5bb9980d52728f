"""CATR's encoder and decoder: attention that adds positions to queries and keys, and what a decoder keeps of it.

Source of the facts: github.com/saahiluppal/catr, models/transformer.py and models/position_encoding.py; the design is
DETR's (Carion et al. 2020, "End-to-end object detection with transformers"). Norms come before attention; positions
are added behind the norm, to queries and keys alone. Dropout has no weights and is left out: nothing here is trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000  # of the sines' wavelengths


def sine_positions(valid: Tensor, features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of where each cell lies, `(B, rows, columns, features)`; `features` a multiple of 4.

    `valid` `(B, rows, columns)` bool is False on padding. The first half of the features tells the row, the second
    the column, sines and cosines in turn; cells are counted from 1 and the last valid one is a full turn.
    """
    half = features // 2
    pair = torch.arange(half, device=valid.device) // 2
    waves = TEMPERATURE ** (2 * pair.to(dtype) / half)
    halves = []
    for axis in (1, 2):
        count = valid.cumsum(axis, dtype=dtype)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angles = (count / (last + 1e-6) * 2 * math.pi)[..., None] / waves
        halves.append(torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2))
    return torch.cat(halves, -1)


class Attention(nn.Module):
    """Multi-head attention with the weights of `nn.MultiheadAttention`, but its projections to be had one by one."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)

    def queries(self, x: Tensor) -> Tensor:
        """`(B, heads, n, hidden / heads)` of `x` `(B, n, hidden)`; so are keys and values."""
        return self._projected(x, 0)

    def keys(self, x: Tensor) -> Tensor:
        return self._projected(x, 1)

    def values(self, x: Tensor) -> Tensor:
        return self._projected(x, 2)

    def joined(self, mixed: Tensor) -> Tensor:
        """All heads' mixed values `(B, heads, n, hidden / heads)` as `(B, n, hidden)`."""
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _projected(self, x: Tensor, part: int) -> Tensor:
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attention_weights(queries: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
    """What `scaled_dot_product_attention` mixes values with but never shows, `(B, heads, queries, keys)`."""
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    return scores.softmax(-1)


class EncoderLayer(nn.Module):
    """Cells look at each other."""

    def __init__(self, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.self_attn = Attention(hidden, heads)
        self.linear1, self.linear2 = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        attention, normed = self.self_attn, self.norm1(x)
        placed = normed + positions
        mixed = F.scaled_dot_product_attention(
            attention.queries(placed), attention.keys(placed), attention.values(normed), attn_mask=valid
        )
        x = x + attention.joined(mixed)
        return x + self.linear2(self.linear1(self.norm2(x)).relu())


class Encoder(nn.Module):
    """`(B, cells, hidden)` of the same; `valid` `(B, 1, 1, cells)` is False for cells that none may look at."""

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
    """A decoder layer's keys and values: of every image's cells, and of the tokens that every row has read so far."""

    image_keys: Tensor  # (images, heads, cells, hidden / heads); so are the values
    image_values: Tensor
    keys: Tensor | None = None  # (rows, heads, tokens, hidden / heads); so are the values
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All rows' keys and values, the new ones behind those that were there."""
        if self.keys is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values


@dataclass
class CatrCache:
    """What the decoder keeps: per image the cells' keys and values, per row those of the tokens read."""

    layers: Sequence[LayerCache]
    valid: Tensor | None  # (images, 1, 1, cells), False on padding

    @property
    def images(self) -> int:
        return len(self.layers[0].image_keys)

    @property
    def rows(self) -> int | None:
        """How many rows have been read; None before the first `read`."""
        keys = self.layers[0].keys
        return None if keys is None else len(keys)

    @property
    def length(self) -> int:
        """How many tokens each row has read."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these numbers, in this order; a number may come more than once. Images stay."""
        if self.rows is None:
            return
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


@dataclass(frozen=True)
class SharedImages:
    """Rows of one image side by side as that image's queries: its keys and values are read where they lie.

    Copies for every row would take 4 MB a row at the published size (19x19 cells, six layers) and be made anew for
    every token.
    """

    images: int
    each: int  # rows of the image that has most
    place: Tensor  # (rows,) where each row lies among images * each

    @classmethod
    def of(cls, images_of: Tensor, images: int) -> "SharedImages":
        """`images_of` `(rows,)` numbers each row's image. Raises `ValueError` where rows are not sorted by image."""
        if bool((images_of.diff() < 0).any()):
            raise ValueError("rows must be sorted by image")
        counts = images_of.bincount(minlength=images)
        first = counts.cumsum(0) - counts
        each = int(counts.max())
        within = torch.arange(len(images_of), device=images_of.device) - first[images_of]
        return cls(images, each, images_of * each + within)

    def gather(self, x: Tensor) -> Tensor:
        """`(images, heads, each * n, d)` of `(rows, heads, n, d)`; zeros where an image has fewer rows."""
        wide = x.new_zeros(self.images * self.each, *x.shape[1:])
        wide[self.place] = x
        return wide.unflatten(0, (self.images, self.each)).transpose(1, 2).flatten(2, 3)

    def spread(self, x: Tensor) -> Tensor:
        """`gather` undone."""
        return x.unflatten(2, (self.each, -1)).transpose(1, 2).flatten(0, 1)[self.place]


class DecoderLayer(nn.Module):
    """Tokens look back at themselves, then at the image; `places` `(n, hidden)` are the tokens' learned positions."""

    def __init__(self, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.self_attn, self.multihead_attn = Attention(hidden, heads), Attention(hidden, heads)
        self.linear1, self.linear2 = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(hidden) for _ in range(3))

    def new_cache(self, memory: Tensor, positions: Tensor) -> LayerCache:
        """Keys and values of `memory` `(images, cells, hidden)`: keys tell where a cell lies, values do not."""
        return LayerCache(self.multihead_attn.keys(memory + positions), self.multihead_attn.values(memory))

    def look_back(self, x: Tensor, places: Tensor, cache: LayerCache) -> Tensor:
        """`x` `(rows, n, hidden)` behind self-attention; its keys and values go into `cache`."""
        attention, normed = self.self_attn, self.norm1(x)
        placed = normed + places
        keys, values = cache.append(attention.keys(placed), attention.values(normed))
        new, seen = x.shape[1], keys.shape[2]
        earlier = None  # a single new token may look at all there is
        if new > 1:
            earlier = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
        return x + attention.joined(
            F.scaled_dot_product_attention(attention.queries(placed), keys, values, attn_mask=earlier)
        )

    def image_queries(self, x: Tensor, places: Tensor) -> Tensor:
        """What tokens behind self-attention ask of the image, `(rows, heads, n, hidden / heads)`."""
        return self.multihead_attn.queries(self.norm2(x) + places)

    def forward(
        self, x: Tensor, places: Tensor, cache: LayerCache, valid: Tensor | None, shared: SharedImages
    ) -> Tensor:
        x = self.look_back(x, places, cache)
        queries = shared.gather(self.image_queries(x, places))
        mixed = F.scaled_dot_product_attention(queries, cache.image_keys, cache.image_values, attn_mask=valid)
        x = x + self.multihead_attn.joined(shared.spread(mixed))
        return x + self.linear2(self.linear1(self.norm3(x)).relu())


class Decoder(nn.Module):
    """All layers over `x` `(rows, n, hidden)`, the tokens behind those that `cache` has read."""

    def __init__(self, layers: int, hidden: int, heads: int, feedforward: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(hidden, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, places: Tensor, cache: CatrCache, shared: SharedImages) -> Tensor:
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            x = layer(x, places, kept, cache.valid, shared)
        return self.norm(x)

    def image_weights(self, x: Tensor, places: Tensor, cache: CatrCache, shared: SharedImages, number: int) -> Tensor:
        """What layer `number` weighs the image's cells with, `(rows, heads, n, cells)`; one row an image."""
        for layer, kept in zip(self.layers[:number], cache.layers, strict=False):
            x = layer(x, places, kept, cache.valid, shared)
        asking, kept = self.layers[number], cache.layers[number]
        queries = asking.image_queries(asking.look_back(x, places, kept), places)
        return attention_weights(queries, kept.image_keys, cache.valid)


class Embeddings(nn.Module):
    """Word and learned position, summed and normed."""

    def __init__(self, vocabulary: int, positions: int, hidden: int, pad: int, layer_norm_eps: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, hidden, padding_idx=pad)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=layer_norm_eps)

    def forward(self, tokens: Tensor, read: int) -> tuple[Tensor, Tensor]:
        """Of `tokens` `(rows, n)` behind `read` others: `(rows, n, hidden)`, and their places alone `(n, hidden)`.

        Every decoder layer adds the places again. Raises `ValueError` for more tokens than there are places.
        """
        places, end = self.position_embeddings.weight, read + tokens.shape[1]
        if end > len(places):
            raise ValueError(f"{end} tokens, but CATR has places for {len(places)}")
        places = places[read:end]
        return self.LayerNorm(self.word_embeddings(tokens) + places), places
