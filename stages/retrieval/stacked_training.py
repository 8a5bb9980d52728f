"""Train `R` projections at once: their weights are stacked to `(R, out, in)`, one batched product serves all.

Forward, for row r with its own batch of states x:

    embedding[r] = normalize(x[r] W[r]^T + b[r])

The loss is the sum over rows, so each row's gradient is that of its own loss. AdamW has one learning rate and weight
decay per parameter group, but every row needs its own. With gradient moments m, v (bias-corrected), a row's step is

    w <- (1 - lr decay) w - lr m / (sqrt(v) + eps)

Moments and their quotient do not depend on lr or decay. `StackedAdamW` lets `torch.optim.AdamW` take the step with
lr = 1 and decay = 0, to w', and then forms w <- lr (w' - w) + (1 - lr decay) w per row.

Plain equivalent: `Projections` trained one by one with `torch.optim.AdamW` and a linear learning-rate schedule.
`tests/retrieval/test_stacked_training.py` checks it: `test_training_equals_a_plain_loop` against such a loop,
`test_trainings_side_by_side_equal_trainings_alone` against one row at a time.
Measured gain (`benchmarks/retrieval.py`, the 11 trained rows of Tables 4 and 5, 1464 pairs, 2 CPU cores): 10.9 s row by
row, 3.2 s side by side, with the same weights bit for bit. On the 1000 pairs of the embedded profile, the nine rows of
Table 5 take 8.1 s of CPU time in one thread with five seeds each, 1.9 s with one, evaluations and files included.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.retrieval.projections import Projections


class StackedProjections:
    """The weights of `R` projections as leaf tensors with a leading dimension `R`."""

    def __init__(self, projections: list[Projections]):
        self.projections = projections
        self.weights = {
            name: torch.stack([module.get_parameter(name).detach() for module in projections]).requires_grad_()
            for name, _ in projections[0].named_parameters()
        }

    def images(self, states: Tensor) -> Tensor:
        """Embeddings `(R, N, width)` of class-token states `(R, N, image_dim)`."""
        return self._project(states, "vision_proj")

    def texts(self, states: Tensor) -> Tensor:
        """Embeddings `(R, N, width)` of class-token states `(R, N, text_dim)`."""
        return self._project(states, "text_proj")

    def _project(self, states: Tensor, layer: str) -> Tensor:
        weight = self.weights[f"{layer}.weight"]  # (R, width, dim)
        bias = self.weights[f"{layer}.bias"]  # (R, width)
        return F.normalize(torch.baddbmm(bias[:, None], states, weight.mT), dim=-1)

    @torch.no_grad()
    def copy_to_modules(self) -> None:
        """Copy the current weights to the projections that the stack was built from."""
        for name, weight in self.weights.items():
            for row, module in enumerate(self.projections):
                module.get_parameter(name).copy_(weight[row])


class StackedAdamW:
    """`torch.optim.AdamW` with a learning rate and a weight decay per row."""

    def __init__(self, stack: StackedProjections, learning_rates: list[float], weight_decays: list[float]):
        self.weights = list(stack.weights.values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1.0, weight_decay=0.0)
        self.learning_rates = self.weights[0].new_tensor(learning_rates)
        self.weight_decays = self.weights[0].new_tensor(weight_decays)

    def step(self, loss: Tensor, schedule: Tensor) -> None:
        """Minimize `loss`; row r uses `schedule[r]` times its learning rate, and stays as it is where that is 0."""
        self.optimizer.zero_grad()
        loss.backward()
        previous = [weight.detach().clone() for weight in self.weights]
        self.optimizer.step()
        rates = self.learning_rates * schedule
        decays = rates * self.weight_decays
        with torch.no_grad():
            for weight, before in zip(self.weights, previous, strict=True):
                row_shape = (-1, *[1] * (weight.ndim - 1))  # broadcasts one value per row
                shrunk = before * (1 - decays.view(row_shape))
                weight.sub_(before).mul_(rates.view(row_shape)).add_(shrunk)
