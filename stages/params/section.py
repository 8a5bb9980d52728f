"""The base class of every section of `params.yaml`, its number types, and error messages of one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AllowInfNan,
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
from ruamel.yaml import YAML, YAMLError

from stages.core.stage import InputError
from stages.params.remote_file import take_credentials

PARAMS = Path("params.yaml")
EXPECTED = "Input should be "  # pydantic's messages start with it


def expects(words: str) -> WrapValidator:
    """An annotation that replaces a type's error messages by `words`: all that the type allows, in one phrase."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", EXPECTED + "{words}", {"words": words}) from None

    return WrapValidator(check)


def _no_seed_twice(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("duplicate")
    return seeds


# Strict: `true` must not become 1, and a number in quotes is a mistake. A strict float still takes `0` for `0.0`.
Count = Annotated[int, Strict(), Field(gt=0), expects("an integer greater than 0")]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32), expects("an integer from 0 to 4294967295")]
Seeds = Annotated[
    list[Seed], Field(min_length=1), AfterValidator(_no_seed_twice), expects("a list of one or more different integers")
]
Rate = Annotated[float, Strict(), Field(gt=0), expects("a number greater than 0"), AllowInfNan(False)]
Weight = Annotated[float, Strict(), Field(ge=0), expects("a number of at least 0"), AllowInfNan(False)]
Probability = Annotated[float, Strict(), Field(ge=0, le=1), expects("a number from 0 to 1")]
# The name of a run, which also names its files.
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"),
    expects("a name of letters, digits, '-' and '_' that starts with a letter or digit"),
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
                    raise ValueError(f"{key} = {value!r}: unknown key; allowed here: {', '.join(cls.model_fields)}")
        return content


S = TypeVar("S", bound=Section)


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Read a params file without validation. Raises `InputError` if it is not valid YAML or not a mapping.

    YAML 1.2, as DVC reads it: `1e-5` is a number (for PyYAML, which reads YAML 1.1, it is a string).
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
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
    more = f" (and {len(by_key) - 1} more)" if len(by_key) > 1 else ""
    return _describe(key.removesuffix("."), branches) + more


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
        return f"{key} = {value!r}: {message[0].lower()}{message[1:]}"
    alternatives: list[str] = []
    for branch in branches:
        words = branch["msg"].removeprefix(EXPECTED)
        # A literal's words are "'a', 'b' or 'c'".
        alternatives += re.split(", | or ", words) if branch["type"] == "literal_error" else [words]
    return f"{key} = {value!r}: must be {join_alternatives(alternatives)}"
