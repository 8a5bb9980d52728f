"""Muon (K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") in the weights' precision.

The Muon of torch and that of timm orthogonalize in bfloat16. CPUs without instructions for it need longer for that than
for the rest of a training step, and those with them round differently.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic iteration
STEPS = 5


class Muon(Optimizer):
    """Momentum (Nesterov) whose update of each matrix is replaced by the nearest orthogonal one, nearly.

    Updates of tall matrices are enlarged by the square root of rows over columns, as in the original.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here evaluates the loss again
        """Update all matrices from their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)  # one batched product for each shape
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = torch.stack([self._momentum(matrix) for matrix in matrices])
                updates = zeropower_via_newtonschulz(updates, STEPS, [COEFFICIENTS], dtype=updates.dtype)
                scale = max(1, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, matrix: Tensor) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer = state["momentum_buffer"]
        buffer.lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(buffer, MOMENTUM)
