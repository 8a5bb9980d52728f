"""The linear head: one linear map per patch token, equal to a 1x1 convolution."""

from torch import Tensor, nn

from stages.segmentation.heads.base import HeadShape, SegmentationHead


class LinearHead(SegmentationHead):
    """`dim` features to `classes` logits, with the same weights for every patch."""

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.classify = nn.Linear(shape.dim, shape.classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Map `(B, rows, columns, dim)` to logits `(B, rows, columns, classes)`."""
        return self.classify(patches)
