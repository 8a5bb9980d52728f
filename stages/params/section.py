"""The base class of every section of `params.yaml`, its number types, and error messages of one line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.params.plain_yaml import parse_yaml
from stages.params.remote_file import take_credentials

PARAMS = Path("params.yaml")
MAX_BYTES = 1_000_000  # of a params file; params.yaml has 14 kB
MAX_KEY = 100  # characters of a dotted key in a message
MAX_MESSAGE = 400  # characters
EXPECTED = "Input should be "  # pydantic's messages start with it


def expects(words: str) -> WrapValidator:
    """An annotation that replaces a type's error messages by `words`: all that the type allows, in one phrase."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", EXPECTED + "{words}", {"words": words}) from None

    return WrapValidator(check)


@dataclass(frozen=True)
class Between(GroupedMetadata):
    """An annotation of integers from `low` to `high`; larger ones could only be a mistake.

    Strict: `true` must not become 1, and a number in quotes is a mistake.
    """

    low: int
    high: int

    def __iter__(self) -> Iterator[BaseMetadata | Strict | WrapValidator]:
        yield Strict()
        yield Ge(self.low)
        yield Le(self.high)
        yield expects(f"an integer from {self.low} to {self.high}")


def no_duplicates(numbers: list[int]) -> list[int]:
    """Return `numbers`; raise `ValueError` if one is there twice."""
    if len(set(numbers)) < len(numbers):
        raise ValueError("duplicate")
    return numbers


def _no_seed_in_name(name: str) -> str:
    # `NAME-seed3` is the key of a run of NAME with seed 3 (`run_key`).
    if re.search(r"-seed[0-9]+$", name):
        raise ValueError("ends like a run's key")
    return name


def _positive_zero(number: float) -> float:
    return number + 0.0  # turns -0.0 into 0.0


Count = Annotated[int, Between(1, 10_000_000)]
Epochs = Annotated[int, Between(1, 10_000)]
BatchSize = Annotated[int, Between(1, 100_000)]
Side = Annotated[int, Between(1, 4096)]  # of an image, in pixels
Seed = Annotated[int, Between(0, 2**32 - 1)]
Seeds = Annotated[
    list[Seed],
    Field(min_length=1),
    AfterValidator(no_duplicates),
    expects("a list of one or more different integers from 0 to 4294967295"),
]
# A strict float still takes `0` for `0.0`.
Rate = Annotated[float, Strict(), Field(gt=0, le=1000), expects("a number greater than 0 and at most 1000")]
# Logits are divided by it: below, differences between them overflow or vanish in float32.
Temperature = Annotated[float, Strict(), Field(ge=0.001, le=1000), expects("a number from 0.001 to 1000")]
Weight = Annotated[
    float, Strict(), Field(ge=0, le=1000), AfterValidator(_positive_zero), expects("a number from 0 to 1000")
]
Probability = Annotated[
    float, Strict(), Field(ge=0, le=1), AfterValidator(_positive_zero), expects("a number from 0 to 1")
]
# The name of a run, which also names its files.
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100),
    AfterValidator(_no_seed_in_name),
    expects(
        "a name of letters, digits, '-' and '_' (at most 100) that starts with a letter or digit and does not end in "
        "'-seed' and digits"
    ),
]


class Section(BaseModel):
    """A part of `params.yaml`: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, content: Any) -> Any:
        """Reject unknown keys before missing ones: a misspelled key is both, and this message names the typo."""
        if isinstance(content, dict) and cls.model_config["extra"] == "forbid":
            for key, value in content.items():
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(key, value, list(cls.model_fields)))
        return content


S = TypeVar("S", bound=Section)


def unknown_key(key: Any, value: Any, allowed: Sequence[str]) -> str:
    """The message about a key that a section does not have."""
    return f"{_shorten(str(key))} = {quote_value(value)}: unknown key; allowed here: {', '.join(allowed)}"


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Read a params file without validation. Raises `InputError` if it is not plain YAML or not a mapping."""
    with path.open("rb") as file:
        encoded = file.read(MAX_BYTES + 1)
    if len(encoded) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        content = parse_yaml(encoded.decode("utf-8-sig"))  # some editors start a file with a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} has no keys; expected sections such as 'segmentation'")
    take_credentials(content)
    return content


def validate_params(model: type[S], content: Any, prefix: str = "") -> S:
    """Validate `content` as `model`. Raises `InputError` with the first problem's key, value and what is allowed.

    `prefix` is put before the key, such as `pretrain.` if `content` is that section only.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{PARAMS}: {describe_errors(error.errors(), content, prefix)}") from error


def load_section(model: type[S], key: str) -> S:
    """Read and validate one section of `params.yaml`, for a stage that needs no other."""
    content = read_params()
    if key not in content:
        raise InputError(f"{PARAMS} has no section '{key}'")
    return validate_params(model, content[key], f"{key}.")


def describe_errors(errors: Sequence[ErrorDetails], content: Any, prefix: str = "") -> str:
    """Describe the first problem in one line, and count the rest. Errors of one key are branches of its union."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(prefix + _key(error, content), []).append(error)
    key, branches = next(iter(by_key.items()))
    message = _describe(_shorten(key.removesuffix(".")), branches)
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}..."
    more = f" (and {len(by_key) - 1} more)" if len(by_key) > 1 else ""
    return message + more


def join_alternatives(alternatives: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *rest, last = alternatives
    return f"{', '.join(rest)} or {last}" if rest else last


def _key(error: ErrorDetails, content: Any) -> str:
    """The dotted key of an error's value. pydantic mixes labels of union branches into its location: leave them out."""
    parts = []
    for part in error["loc"]:
        in_mapping = isinstance(content, dict) and part in content
        in_list = isinstance(content, list) and isinstance(part, int)
        if in_mapping or in_list:
            content = content[part]
            parts.append(str(part))
    if error["type"] == "missing":
        parts.append(str(error["loc"][-1]))
    return ".".join(parts)


def _describe(key: str, branches: list[ErrorDetails]) -> str:
    first = branches[0]
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    if first["type"] == "missing":
        return f"'{key}' is missing"
    if first["type"] == "value_error" and isinstance(value, dict):  # a section's own rule: it names its key
        return f"{key}.{message}" if key else message
    if not message.startswith(EXPECTED):
        return f"{key} = {quote_value(value)}: {message[0].lower()}{message[1:]}"
    alternatives: list[str] = []
    for branch in branches:
        words = branch["msg"].removeprefix(EXPECTED)
        # A literal's words are "'a', 'b' or 'c'".
        alternatives += re.split(", | or ", words) if branch["type"] == "literal_error" else [words]
    return f"{key} = {quote_value(value)}: must be {join_alternatives(alternatives)}"


def _shorten(key: str) -> str:
    """A key as it is, or as a value is quoted if it is long or not printable."""
    return key if len(key) <= MAX_KEY and key.isprintable() else quote_value(key)
