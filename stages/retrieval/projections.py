"""The two linear projections that BLIP compares images and captions through, many pairs of them side by side."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stages.writing import replacing


class Projections(nn.Module):
    """An image's and a caption's class-token state, each through its own linear layer, to unit length."""

    def __init__(self, image_dim: int, text_dim: int, width: int):
        super().__init__()
        self.vision_proj = nn.Linear(image_dim, width)
        self.text_proj = nn.Linear(text_dim, width)

    def images(self, states: Tensor) -> Tensor:
        """`(N, width)` of `(N, image_dim)`."""
        return F.normalize(self.vision_proj(states), dim=-1)

    def texts(self, states: Tensor) -> Tensor:
        """`(N, width)` of `(N, text_dim)`."""
        return F.normalize(self.text_proj(states), dim=-1)


def load_projections(path: Path) -> Projections:
    """Projections of a file of `save_projections`, or of those that BLIP came with."""
    weights = load_file(path)
    width, image_dim = weights["vision_proj.weight"].shape
    projections = Projections(image_dim, weights["text_proj.weight"].shape[1], width)
    projections.load_state_dict(weights)
    return projections


def save_projections(path: Path, projections: Projections) -> None:
    """Write the weights, whole or not at all."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in projections.state_dict().items()}
    with replacing(path) as beside:
        save_file(weights, beside)


class Stack:
    """`R` pairs of projections as one batched product; each stays a module of its own, with its own optimizer group."""

    def __init__(self, rows: list[Projections]):
        self.rows = rows

    def images(self, states: Tensor) -> Tensor:
        """`(R, N, width)` of `(R, N, image_dim)`."""
        return self._project(states, [row.vision_proj for row in self.rows])

    def texts(self, states: Tensor) -> Tensor:
        """`(R, N, width)` of `(R, N, text_dim)`."""
        return self._project(states, [row.text_proj for row in self.rows])

    @staticmethod
    def _project(states: Tensor, layers: list[nn.Linear]) -> Tensor:
        weight, bias = torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])
        return F.normalize(torch.baddbmm(bias[:, None], states, weight.transpose(1, 2)), dim=-1)
