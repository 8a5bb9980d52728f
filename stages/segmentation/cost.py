"""What a frozen backbone costs: its parameters, and its operations and tokens per training view."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.core.atomic import write_text

FILE = "backbone.json"  # in the folder of the backbone's feature tables


@dataclass(frozen=True)
class Cost:
    """`flops` counts products of matrices and convolutions; a multiplication with its addition counts as two."""

    parameters: int
    flops: int
    tokens: int


def write_cost(folder: Path, cost: Cost) -> None:
    """Write the cost to the folder of the backbone's feature tables."""
    write_text(folder / FILE, json.dumps(asdict(cost), indent=1) + "\n")


def read_cost(folder: Path) -> Cost:
    """The cost of the backbone whose feature tables are in `folder`."""
    return Cost(**json.loads((folder / FILE).read_text()))
