"""The transformer head: patch tokens and learned class embeddings attend to each other, then meet in a product.

As in the report: one block, then two separate MLPs without a residual, logits = patches x classes^T, LayerNorm
over the class axis. The idea of class embeddings is Segmenter's mask transformer (Strudel et al., 2021).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention; with `shared_qk` one projection serves as queries and keys."""

    def __init__(self, dim: int, *, heads: int, shared_qk: bool):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide {dim} features")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = None if shared_qk else nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.merge = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, tokens, dim)` to the same shape."""
        query = self._by_head(self.query(tokens))
        key = query if self.key is None else self._by_head(self.key(tokens))
        mixed = F.scaled_dot_product_attention(query, key, self._by_head(self.value(tokens)))
        return self.merge(mixed.transpose(1, 2).flatten(2))  # (B, tokens, heads, dim / heads) -> (B, tokens, dim)

    def _by_head(self, tokens: Tensor) -> Tensor:
        """`(B, tokens, dim)` to `(B, heads, tokens, dim / heads)`."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """One block over patch tokens and `classes` learned embeddings."""

    def __init__(self, dim: int, classes: int, *, heads: int, shared_qk: bool):
        super().__init__()
        self.class_embeddings = nn.Parameter(torch.empty(1, classes, dim))
        nn.init.trunc_normal_(self.class_embeddings, std=0.02)
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads=heads, shared_qk=shared_qk)
        self.norm_mlp = nn.LayerNorm(dim)
        self.patch_mlp = _mlp(dim)
        self.class_mlp = _mlp(dim)
        self.norm_logits = nn.LayerNorm(classes)

    def forward(self, patches: Tensor) -> Tensor:
        """`(B, rows, columns, dim)` to logits `(B, rows, columns, classes)`."""
        rows, columns = patches.shape[1:3]
        tokens = patches.flatten(1, 2)  # (B, rows * columns, dim)
        tokens = torch.cat([tokens, self.class_embeddings.expand(len(tokens), -1, -1)], dim=1)
        tokens = tokens + self.attention(self.norm_attention(tokens))
        tokens = self.norm_mlp(tokens)
        patch_tokens = self.patch_mlp(tokens[:, : rows * columns])  # (B, rows * columns, dim)
        class_tokens = self.class_mlp(tokens[:, rows * columns :])  # (B, classes, dim)
        logits = self.norm_logits(patch_tokens @ class_tokens.transpose(1, 2))  # (B, rows * columns, classes)
        return logits.unflatten(1, (rows, columns))


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
