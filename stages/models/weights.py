"""Read weights from third-party checkpoint files, without running any code that they may contain."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, TypeVar
from zipfile import is_zipfile

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stages.core.finite import is_finite
from stages.core.messages import join_names, quote_value
from stages.core.stage import first_line

LARGEST_SIZE = 2**16  # of a file's own numbers: beyond any model, and small enough to build and compare
NAMED_KEYS = 5  # keys that an error message lists before it counts the rest
Kind = TypeVar("Kind")
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]

WRAPPER_KEYS = ("model", "teacher", "state_dict")  # under which training code stores the weights


def read_weights(path: Path, include: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `torch.save` file, by name, for the names that `include` accepts.

    A file of `torch.save` is mapped into memory, not read, and unpickled with `weights_only`: tensors and plain values
    only. Raises `FileNotFoundError` for a missing file, and a one-line `ValueError` for one with other content.
    """
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except UnpicklingError as error:  # torch's own message advises to load the file with `weights_only=False`
        raise ValueError(f"{path} is not a file of tensors: damaged, or contains executable pickle code") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors: {first_line(error)}") from error
    if not (isinstance(content, dict) and content):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"{path} contains values that are not tensors: {join_names(other, NAMED_KEYS)}")
    return {name: weight for name, weight in content.items() if include(name)}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a `.safetensors` file; empty for another file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `ValueError`, on one line, if `weights` do not have the names and shapes of `expected`."""
    problems = {
        "lacks": [name for name in expected if name not in weights],
        "has unknown keys": [name for name in weights if name not in expected],
        "has wrong shapes:": [
            f"{name} is {format_shape(weight.shape)}, expected {format_shape(expected[name].shape)}"
            for name, weight in weights.items()
            if name in expected and weight.shape != expected[name].shape
        ],
    }
    messages = [f"{problem} {join_names(names, NAMED_KEYS)}" for problem, names in problems.items() if names]
    if messages:
        raise ValueError("; ".join(messages))


def check_finite_weights(model: nn.Module) -> None:
    """Raise `ValueError`, on one line, if a weight is NaN or infinite: everything computed from it would be too."""
    problems = [
        name for name, weight in model.state_dict().items() if weight.is_floating_point() and not is_finite(weight)
    ]
    if problems:
        raise ValueError(f"contains NaN or infinite weights: {join_names(problems, NAMED_KEYS)}")


def parse_metadata(kind: type[Kind], text: str) -> Kind:
    """A dataclass from JSON in a file's metadata. Raises `ValueError`, on one line, if a value is missing or wrong."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(describe_error(error)) from error


def describe_error(error: ValidationError) -> str:
    """The first problem of metadata, on one line: key, value and what is allowed."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"])) or "metadata"
    return f"{key} = {quote_value(problem['input'])}: {problem['msg']}"


def format_shape(shape: torch.Size) -> str:
    """A shape in words, such as `64x96`."""
    return "x".join(map(str, shape)) or "a single number"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> object:
    can_map = is_zipfile(path)  # torch before 1.6 wrote files that cannot be mapped into memory
    # DINO's full checkpoints store their command-line arguments, an `argparse.Namespace` of plain values.
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    if isinstance(content, dict):
        for key in WRAPPER_KEYS:
            if isinstance(content.get(key), dict):
                return content[key]
    return content
