"""Heads: patch tokens `(B, rows, columns, dim)` to class logits `(B, rows', columns', classes)`."""

from torch import nn

from stages.segmentation.heads.convolutional import Convolutional
from stages.segmentation.heads.linear import Linear
from stages.segmentation.heads.transformer import Transformer


def build_head(
    kind: str, *, dim: int, classes: int, heads: int, kernel: int | None = None, shared_qk: bool | None = None
) -> nn.Module:
    """The head that a row of `segmentation.heads` asks for; `heads` is the backbone's number of attention heads."""
    if kind == "linear":
        return Linear(dim, classes)
    if kind == "convolutional":
        return Convolutional(dim, classes, kernel=kernel)
    if kind == "transformer":
        return Transformer(dim, classes, heads=heads, shared_qk=shared_qk)
    raise ValueError(f"unknown head '{kind}'; available: linear, convolutional, transformer")
