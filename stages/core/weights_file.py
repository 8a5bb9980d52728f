"""Write model weights as safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from stages.core.atomic import atomic_write


def save_weights(path: Path, weights: Mapping[str, Tensor], **metadata: object) -> None:
    """Write `weights` to `path`, atomically, with at most one `metadata` entry, stored as JSON.

    Raises `ValueError` for several entries: safetensors writes them in an order that changes from run to run
    (https://github.com/safetensors/safetensors/issues/584), so equal weights would give unequal files.
    """
    if len(metadata) > 1:
        raise ValueError(f"one metadata entry at most, got {', '.join(metadata)}")
    # A clone per tensor: safetensors refuses tensors that share memory, such as tied weights.
    tensors = {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
    encoded = {key: json.dumps(value) for key, value in metadata.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=encoded or None)
