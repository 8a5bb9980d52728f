"""On what models are computed, and how: `compute` in params.yaml."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.params.compute import Compute


def get_device() -> torch.device:
    """The GPU where there is one. Its float32 is float32: by default, convolutions would use TF32 in its place."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(compute: Compute) -> torch.autocast:
    """Products in `compute.precision`, on whatever device; everything else, and all weights, stay float32."""
    kind = getattr(torch, compute.precision)
    on = kind != torch.float32
    return torch.autocast(get_device().type, kind if on else torch.bfloat16, enabled=on)


def prepare_model(model: nn.Module, compute: Compute) -> nn.Module:
    """The model on its device; where that was asked for, every layer that it has several of is compiled.

    Layers alone, as timm guards the height of every image: the whole of a ViT would be compiled anew for each.
    """
    model.to(get_device())
    if compute.compile:
        for layer in _repeated(model):
            layer.compile(dynamic=True)
    return model


def _repeated(model: nn.Module) -> list[nn.Module]:
    """The elements of lists of modules of one class."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList | nn.Sequential) and len(one) > 1]
    return [layer for one in lists if len({type(layer) for layer in one}) == 1 for layer in one]


class MixedPrecision:
    """Steps of an optimizer in `compute.precision`.

    Gradients of float16 products are scaled up before they are taken, and down again before the step, as small ones
    would be 0 (Micikevicius et al., 2018, "Mixed precision training"); the others need no scale.
    """

    def __init__(self, compute: Compute):
        self.compute = compute
        self.scaler = torch.amp.GradScaler(get_device().type, enabled=compute.precision == "float16")

    def products(self) -> torch.autocast:
        """Where the model is called."""
        return mixed_precision(self.compute)

    def backward(self, loss: Tensor) -> None:
        """Add up the loss's gradients."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer) -> None:
        """Take a step and forget the gradients."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
