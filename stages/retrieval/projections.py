"""The two linear projections that BLIP compares images and captions through, many pairs of them side by side."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.atomic import atomic_write


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
    with atomic_write(path) as beside:
        save_file(weights, beside)


class StackedProjections:
    """The weights of `R` pairs of projections, side by side: one batched product, one optimizer."""

    def __init__(self, rows: list[Projections]):
        self.rows = rows
        self._names = [name for name, _ in rows[0].named_parameters()]
        self.weights = {
            name: torch.stack([row.get_parameter(name).detach() for row in rows]).requires_grad_()
            for name in self._names
        }

    def images(self, states: Tensor) -> Tensor:
        """`(R, N, width)` of `(R, N, image_dim)`."""
        return self._project(states, "vision_proj")

    def texts(self, states: Tensor) -> Tensor:
        """`(R, N, width)` of `(R, N, text_dim)`."""
        return self._project(states, "text_proj")

    def _project(self, states: Tensor, layer: str) -> Tensor:
        weight, bias = self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"]
        return F.normalize(torch.baddbmm(bias[:, None], states, weight.mT), dim=-1)

    @torch.no_grad()
    def write_back(self) -> list[Projections]:
        """The rows, with their weights as they are now."""
        for place, row in enumerate(self.rows):
            for name, weight in self.weights.items():
                row.get_parameter(name).copy_(weight[place])
        return self.rows


class StackedAdamW:
    """`torch.optim.AdamW` over a stack, with a learning rate and a weight decay for every row.

    A row's step is AdamW's own step of length 1, shortened to its learning rate; weights decay before it, as there.
    """

    def __init__(self, stack: StackedProjections, rates: list[float], decays: list[float]):
        self._weights = list(stack.weights.values())
        self._inner = torch.optim.AdamW(self._weights, lr=1.0, weight_decay=0.0)
        device = self._weights[0].device
        self._rates, self._decays = (torch.tensor(one, device=device) for one in (rates, decays))

    def step(self, loss: Tensor, share: Tensor) -> None:
        """Descend `loss`, at a `share` `(R,)` of every row's learning rate; a row with share 0 stays as it is."""
        self._inner.zero_grad()
        loss.backward()
        before = [weight.detach().clone() for weight in self._weights]
        self._inner.step()
        rates = self._rates * share
        with torch.no_grad():
            for weight, old in zip(self._weights, before, strict=True):
                rate, decay = (one.view(-1, *[1] * (weight.ndim - 1)) for one in (rates, rates * self._decays))
                weight.sub_(old).mul_(rate).add_(old * (1 - decay))
