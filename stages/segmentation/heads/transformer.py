"""The transformer head: self-attention over patch tokens and learned class embeddings, then their dot products.

As in the original: one block, without biases for queries, keys and values, then two separate MLPs without a residual,
logits = patches x classes^T, LayerNorm over the class axis. Class embeddings are the idea of Segmenter's mask
transformer (Strudel et al., 2021).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.params.section import Rate
from stages.segmentation.heads.base import HeadShape, SegmentationHead


class SelfAttention(nn.Module):
    """Multi-head self-attention; with `shared_qk` one projection gives queries and keys.

    `qkv_bias`: whether the projections to queries, keys and values have biases.
    """

    def __init__(self, dim: int, *, heads: int, shared_qk: bool, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = None if shared_qk else nn.Linear(dim, dim, bias=qkv_bias)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.merge = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, tokens, dim)` to the same shape."""
        query = self._split_heads(self.query(tokens))
        key = query if self.key is None else self._split_heads(self.key(tokens))
        value = self._split_heads(self.value(tokens))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, tokens, dim / heads)
        return self.merge(mixed.transpose(1, 2).flatten(2))  # (B, tokens, dim)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """Reshape `(B, tokens, dim)` to `(B, heads, tokens, dim / heads)`."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TransformerHead(SegmentationHead):
    """One block over patch tokens and one learned embedding per class.

    `shared_qk` and `qkv_bias` are those of `SelfAttention`. Class embeddings start from N(0, class_std^2).
    """

    def __init__(self, shape: HeadShape, *, shared_qk: bool, qkv_bias: bool = False, class_std: Rate = 0.02):
        super().__init__()
        dim = shape.dim
        self.class_embeddings = nn.Parameter(torch.empty(1, shape.classes, dim))
        nn.init.normal_(self.class_embeddings, std=class_std)
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads=shape.attention_heads, shared_qk=shared_qk, qkv_bias=qkv_bias)
        self.norm_mlp = nn.LayerNorm(dim)
        self.patch_mlp = _mlp(dim)
        self.class_mlp = _mlp(dim)
        self.norm_logits = nn.LayerNorm(shape.classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Map `(B, rows, columns, dim)` to logits `(B, rows, columns, classes)`."""
        rows, columns = patches.shape[1:3]
        patch_tokens = patches.flatten(1, 2)  # (B, rows * columns, dim)
        class_tokens = self.class_embeddings.expand(len(patches), -1, -1)  # (B, classes, dim)
        tokens = torch.cat([patch_tokens, class_tokens], dim=1)
        tokens = tokens + self.attention(self.norm_attention(tokens))
        tokens = self.norm_mlp(tokens)
        patch_tokens = self.patch_mlp(tokens[:, : rows * columns])  # (B, rows * columns, dim)
        class_tokens = self.class_mlp(tokens[:, rows * columns :])  # (B, classes, dim)
        logits = self.norm_logits(patch_tokens @ class_tokens.transpose(1, 2))  # (B, rows * columns, classes)
        return logits.unflatten(1, (rows, columns))


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
