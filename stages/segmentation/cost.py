"""What a frozen backbone costs: its parameters, and its operations and tokens per training view."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.core.atomic import write_text
from stages.models.vit import Backbone

FILE = "backbone.json"  # in the folder of the backbone's feature tables


@dataclass(frozen=True)
class Cost:
    """`flops` counts products of matrices and convolutions; a multiplication with its addition counts as two."""

    parameters: int
    flops: int
    tokens: int


@torch.inference_mode()
def measure_cost(backbone: Backbone, side: int) -> Cost:
    """The cost of a backbone on a training view of `side` x `side` pixels."""
    device = next(backbone.parameters()).device
    view = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    # The counter does not know the fused attention kernels of CPUs. MATH is attention as two products of matrices.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        patches = backbone(view).patches
    # A classification layer, which the patch tokens do not depend on, is not counted.
    parameters = sum(weight.numel() for name, weight in backbone.named_parameters() if not name.startswith("vit.head."))
    return Cost(parameters, counter.get_total_flops(), patches[0, ..., 0].numel())


def write_cost(folder: Path, cost: Cost) -> None:
    """Write the cost to the folder of the backbone's feature tables."""
    write_text(folder / FILE, json.dumps(asdict(cost), indent=1) + "\n")


def read_cost(folder: Path) -> Cost:
    """The cost of the backbone whose feature tables are in `folder`."""
    return Cost(**json.loads((folder / FILE).read_text()))
