"""Weights in files of others, read without running any code that they hold."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WRAPPED = ("model", "teacher", "state_dict")  # keys that a training's weights stand under
NAMED = 5  # keys in a message; it counts the rest


def read_weights(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one of `torch.save`, whose names are `wanted`.

    The latter is mapped into memory, not read, and unpickled with `weights_only`: tensors and plain values alone.
    Raises `FileNotFoundError` for a missing file, and `ValueError` with one line for one that holds anything else.
    """
    try:
        held = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except UnpicklingError as fault:  # torch's own words advise to run the code all the same
        raise ValueError(f"{path} is no file of tensors: it is damaged, or asks for code to be run") from fault
    except (SafetensorError, RuntimeError, EOFError) as fault:
        told = (str(fault).strip().splitlines() or ["empty"])[0]
        raise ValueError(f"{path} is no file of tensors: {told}") from fault
    if not (isinstance(held, dict) and held):
        raise ValueError(f"{path} holds a {type(held).__name__}; expected tensors by name")
    strange = [str(name) for name, weight in held.items() if not isinstance(weight, Tensor)]
    if strange:
        raise ValueError(f"{path} holds other things than tensors: {summarize_names(strange)}")
    return {name: weight for name, weight in held.items() if wanted(name)}


def summarize_names(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_pickled(path: Path) -> object:
    mapped = is_zipfile(path)  # torch before 1.6 wrote files that cannot be mapped
    with torch.serialization.safe_globals([Namespace]):  # of a training's arguments, beside its weights: plain values
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for key in WRAPPED:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            return held[key]
    return held
