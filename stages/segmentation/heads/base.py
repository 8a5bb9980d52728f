"""The base class of all heads."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class HeadShape:
    """The sizes of a head that data and backbone determine."""

    dim: int  # features of a patch token
    classes: int
    attention_heads: int  # of the backbone


class SegmentationHead(nn.Module):
    """Maps patch tokens `(B, rows, columns, dim)` to class logits `(B, rows', columns', classes)`.

    A subclass takes a `HeadShape` and declares its options as keyword-only arguments of its constructor. Their names
    are keys of `segmentation.heads.NAME` in params.yaml, checked against their types.
    """

    min_grid = 1  # sides of the smallest grid of patch tokens that the head accepts
