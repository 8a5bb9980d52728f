"""Device, precision and compilation: the section `compute` of params.yaml."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.params.compute import Compute


def get_device() -> torch.device:
    """The GPU if any, else the CPU."""
    # cuDNN convolutions use TF32 by default, with 10 bits of mantissa where float32 has 23.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(compute: Compute) -> torch.autocast:
    """Run matrix products and convolutions in `compute.precision`; all else, and all weights, stay float32."""
    dtype = getattr(torch, compute.precision)
    return torch.autocast(get_device().type, dtype, enabled=dtype != torch.float32)


def prepare_model(model: nn.Module, compute: Compute) -> nn.Module:
    """Move the model to its device, and compile its repeated layers if `compute.compile` is set.

    Only the layers are compiled: timm guards on the height of each image, so a whole ViT would be compiled again for
    each height. A model that is prepared again stays as it is.
    """
    model.to(get_device())
    if compute.compile:
        for layer in _repeated_layers(model):
            if layer._compiled_call_impl is None:
                layer.compile(dynamic=True)
    return model


def _repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The elements of all lists of several modules that are all of one class, such as transformer blocks."""
    layers: list[nn.Module] = []
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(layer) for layer in module}) == 1:
            layers.extend(module)
    return layers


class MixedPrecision:
    """Training steps in `compute.precision`.

    For float16, the loss is scaled up before the backward pass and the gradients are scaled down before the step, as
    small gradients would round to 0 (Micikevicius et al. 2018, "Mixed precision training"). The other precisions have
    the exponent range of float32 and need no scaling.
    """

    def __init__(self, compute: Compute):
        self.compute = compute
        self.scaler = torch.amp.GradScaler(get_device().type, enabled=compute.precision == "float16")

    def products(self) -> torch.autocast:
        """The context to call the model in."""
        return mixed_precision(self.compute)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the loss."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer) -> None:
        """Update the weights and reset the gradients."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
