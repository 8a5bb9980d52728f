"""On what models are computed, and how: `compute` in params.yaml."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.params.compute import Compute


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(compute: Compute) -> torch.autocast:
    """Products in `compute.precision`, on whatever device; everything else, and all weights, stay float32."""
    kind = getattr(torch, compute.precision)
    on = kind != torch.float32
    return torch.autocast(device().type, kind if on else torch.bfloat16, enabled=on)


def ready(model: nn.Module, compute: Compute) -> nn.Module:
    """The model on its device, compiled where that was asked for; sizes of images may change from call to call."""
    model.to(device())
    if compute.compile:
        model.compile(dynamic=True)
    return model


class MixedTraining:
    """Steps of an optimizer in `compute.precision`.

    Gradients of float16 products are scaled up before they are taken, and down again before the step, as small ones
    would be 0 (Micikevicius et al., 2018, "Mixed precision training"); the others need no scale.
    """

    def __init__(self, compute: Compute):
        self.compute = compute
        self._scaler = torch.amp.GradScaler(device().type, enabled=compute.precision == "float16")

    def products(self) -> torch.autocast:
        """Where the model is called."""
        return mixed_precision(self.compute)

    def backward(self, loss: Tensor) -> None:
        """Add up the loss's gradients."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer) -> None:
        """Take a step and forget the gradients."""
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad()
