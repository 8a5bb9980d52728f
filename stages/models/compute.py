"""Device, precision and compilation: the section `compute` of params.yaml."""

import os
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.core.stage import first_line
from stages.params.compute import Compute

# What NVIDIA's driver creates: one device file and one folder per GPU. In a container without access to the GPUs of
# its host, the folders exist without the device files.
DEVICE_FILES = Path("/dev")
DRIVER_FOLDERS = Path("/proc/driver/nvidia/gpus")
INSTALL_TORCH = "https://pytorch.org/get-started/locally"


def get_device() -> torch.device:
    """The GPU if any, else the CPU. Says so on stderr, once per process, if there is a GPU that torch cannot use."""
    # cuDNN convolutions use TF32 by default, with 10 bits of mantissa where float32 has 23.
    torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        return torch.device("cuda")
    _report_unused_gpu()
    return torch.device("cpu")


@cache  # one line per process
def _report_unused_gpu() -> None:
    """Print why the GPU of this machine is not used, and what to do; nothing if there is no GPU."""
    if has_device_file() or has_driver_folder():
        # Not a warning: those are shown once per line of code and can be switched off, and tests turn them into errors.
        print(f"computing on the CPU, although this machine has an NVIDIA GPU: {unused_reason()}", file=sys.stderr)


def has_device_file() -> bool:
    """Whether this process can see an NVIDIA GPU."""
    return any(DEVICE_FILES.glob("nvidia[0-9]*"))


def has_driver_folder() -> bool:
    """Whether NVIDIA's driver runs a GPU of this machine, or of the machine that this container runs on."""
    return DRIVER_FOLDERS.is_dir() and any(DRIVER_FOLDERS.iterdir())


def unused_reason() -> str:
    """Why torch cannot use the NVIDIA GPU of this machine, and what to do about it."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA; install one with it, see {INSTALL_TORCH}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.split(",")[0].strip().removeprefix("-1"):
        return f"CUDA_VISIBLE_DEVICES is '{visible}', which hides all GPUs; unset it"
    if not has_device_file():
        return "it has no device file in /dev; start the container with access to it (`docker run --gpus all`)"
    try:
        torch.cuda.init()  # raises what `is_available` keeps to itself
        reason = "torch.cuda.is_available() is False"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    return (
        f"{reason} (torch {torch.__version__} for CUDA {torch.version.cuda}); update the driver until `nvidia-smi` "
        f"shows this CUDA version or a later one, or install a torch for the driver, see {INSTALL_TORCH}"
    )


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
