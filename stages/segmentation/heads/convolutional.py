"""The convolutional head: one unpadded convolution over the patch grid."""

from typing import Annotated

from torch import Tensor, nn

from stages.params.section import Between
from stages.segmentation.heads.base import HeadShape, SegmentationHead

KernelSide = Annotated[int, Between(1, 99)]


class ConvolutionalHead(SegmentationHead):
    """Stride 1, padding 0: each side of the grid shrinks by `kernel - 1`.

    The remaining logits are upsampled to the whole image, as in the original. This moves them outwards by up to half
    of what was lost: little on a grid of 30 tokens, much on one of 10.
    """

    def __init__(self, shape: HeadShape, *, kernel: KernelSide):
        super().__init__()
        self.min_grid = kernel
        self.classify = nn.Conv2d(shape.dim, shape.classes, kernel)

    def forward(self, patches: Tensor) -> Tensor:
        """Map `(B, rows, columns, dim)` to logits `(B, rows - kernel + 1, columns - kernel + 1, classes)`."""
        logits = self.classify(patches.permute(0, 3, 1, 2))  # (B, classes, rows', columns')
        return logits.permute(0, 2, 3, 1)
