"""Several processes that share one training.

`torchrun` starts them, and Accelerate connects them: with NCCL on GPUs, one GPU per process, and with gloo on CPUs.
Every process has the whole model and takes every `count()`-th example of each batch. The loss is computed in parts, one
per process, that add up to the loss of the whole batch. Its gradient is then the sum of the processes' gradients, and
one optimizer step equals that of one process on the whole batch, up to rounding. Nearly every exchange is a sum.

Without `torchrun` there is one process: each function below returns its argument, and Accelerate is not imported (about
a second). `Accelerator.prepare` is not used: it averages over processes, not over images, it divides batches in another
way, and its wrapper (`DistributedDataParallel`) waits for gradients that a process without examples does not have.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.core.stage import InputError, stage

# A launcher ends all processes once one has failed. Until then, the others wait, so that the failed one is known as the
# first; without a launcher that does so, they end by themselves.
WAIT_SECONDS = 10.0

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # those that are read here or by Accelerate

Share = TypeVar("Share", range, Tensor)


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files, records runs and prints."""
    return rank() == 0


@contextmanager
def training_stage(name: str) -> Iterator[None]:
    """Run the body as `stage` does, in each of the processes that `torchrun` has started.

    The process that fails first prints its error; all processes end.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with stage(name, record=os.environ.get("RANK", "0") == "0" if several else True):
        if not several:
            yield
            return
        with _connected():
            yield


@contextmanager
def _connected() -> Iterator[None]:
    from accelerate import PartialState  # imported late: see the head of this file

    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        processes = f"WORLD_SIZE = {os.environ['WORLD_SIZE']} asks for several processes"
        raise InputError(
            f"{processes}, but {', '.join(missing)} is not set; start them by torchrun, or unset WORLD_SIZE"
        )
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu and local > torch.cuda.device_count():
        raise InputError(f"{local} processes, but {torch.cuda.device_count()} GPUs: start at most one process per GPU")
    # Without `cpu=True`, Accelerate leaves the processes of a machine without GPUs unconnected. It selects the GPU.
    state = PartialState(cpu=not on_gpu)
    # The launcher's own store, which outlives each process.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    try:
        yield
    except Exception:
        if _is_first_failure(store):
            raise
        # The same error as in another process, or its consequence: a broken connection.
        time.sleep(WAIT_SECONDS)
        sys.exit(2)
    state.destroy_process_group()


def _is_first_failure(store: dist.Store) -> bool:
    """Whether this process is the first to fail; it must print its error."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # counts anew after each restart by the launcher
    try:
        return store.add(f"failures/{restart}", 1) == 1
    except RuntimeError:  # without `torchrun`, the store is part of the main process, which has ended
        return False


def share(examples: Share) -> Share:
    """This process's examples among `examples`: every `count()`-th, so that shares differ by one example at most."""
    return examples[rank() :: count()]


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all processes, on the device of `values`.

    Differentiable: with a loss in parts, the gradient of the whole loss is the sum of the gradients of all parts.
    """
    return values if count() == 1 else _Sum.apply(values)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _sum(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum(gradients[0])


def _sum(values: Tensor) -> Tensor:
    from accelerate import PartialState
    from accelerate.utils import reduce

    # NCCL needs tensors on the GPU.
    return reduce(values.contiguous().to(PartialState().device), "sum").to(values.device)


def all_gather(rows: Tensor, total: int) -> Tensor:
    """The rows of all processes `(total, ...)`, in the order before `share` split them. Differentiable."""
    if count() == 1:
        return rows
    gathered = rows.new_zeros((total, *rows.shape[1:]))
    gathered[rank() :: count()] = rows
    return all_reduce(gathered)  # the other processes have zeros in these rows


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by the sum over all processes. Call it once per optimizer step, after all backward passes.

    A process without examples has no gradients; they count as zeros.
    """
    if count() == 1:
        return
    gradients = []
    for weight in parameters:
        if weight.requires_grad:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
    # One exchange for all of them: each one costs a round trip.
    summed = _sum(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = summed.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view(gradient.shape))


def broadcast(content: Any) -> Any:
    """The main process's `content`: tensors and plain values, nested in lists and dicts; tensors on the CPU."""
    if count() == 1:
        return content
    from accelerate.utils import broadcast_object_list

    # As bytes of `torch.save`: pickled tensors of a GPU would arrive on the main process's GPU.
    buffer = BytesIO()
    if is_main():
        torch.save(content, buffer)
    (saved,) = broadcast_object_list([buffer.getvalue()])
    return torch.load(BytesIO(saved), weights_only=True, map_location="cpu")
