"""The linear head: one linear map a patch token, which is what a 1x1 convolution does."""

from torch import Tensor, nn


class Linear(nn.Module):
    """`dim` to `classes`, the same for every patch."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classify = nn.Linear(dim, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """`(B, rows, columns, dim)` to logits `(B, rows, columns, classes)`."""
        return self.classify(patches)
