"""The convolutional head: one unpadded convolution over the patch grid."""

from torch import Tensor, nn


class Convolutional(nn.Module):
    """Stride 1, padding 0: each side of the grid shrinks by `kernel - 1`.

    The logits that are left are stretched over the whole image, as the report's are: what they show moves outwards
    by up to half of what was lost, which costs little on a grid of 30 tokens and much on one of 10.
    """

    def __init__(self, dim: int, classes: int, *, kernel: int):
        super().__init__()
        self.classify = nn.Conv2d(dim, classes, kernel)

    def forward(self, patches: Tensor) -> Tensor:
        """`(B, rows, columns, dim)` to logits `(B, rows - kernel + 1, columns - kernel + 1, classes)`."""
        logits = self.classify(patches.permute(0, 3, 1, 2))  # (B, classes, rows', columns')
        return logits.permute(0, 2, 3, 1)
