"""What every section of `params.yaml` is: frozen, closed to unknown keys, refused in one line."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from ruamel.yaml import YAML, YAMLError

from stages.core.stage import InputError

PARAMS = Path("params.yaml")

Count = Annotated[int, Strict(), Field(gt=0)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # a run's: it names files too


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a number")  # true would become 1.0
    return value


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]


def either(kind: Any, other: Any, words: str) -> Any:
    """A type of `kind`, or of `other`, which `words` describe: pydantic's own unions name their branches in errors."""
    first, second = TypeAdapter(kind), TypeAdapter(other)

    def check(value: Any) -> Any:
        try:
            return second.validate_python(value)
        except ValidationError:
            pass
        try:
            return first.validate_python(value)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{told}, or {words}") from None

    return Annotated[Any, BeforeValidator(check)]


def or_named(kind: Any, *names: str) -> Any:
    """A type of `kind`, or of one of `names`."""
    return either(kind, Literal[names], f"one of: {', '.join(names)}")


class Section(BaseModel):
    """A part of `params.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """The raw content of a params file. Reads YAML 1.2, where `1e-5` is a number (in PyYAML it is a string)."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as fault:
        raise InputError(f"{path} is no YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys; expected sections such as 'segmentation'")
    return content


def validate_params(model: type[S], content: Any, prefix: str = "") -> S:
    """`content` as `model`. Raises `InputError`, one line with the first fault's key, value and what is allowed."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(_line(faults[0], model, prefix) + more) from error


def load_section(model: type[S], key: str) -> S:
    """One section of `params.yaml`, for a stage that needs no other."""
    content = read_params()
    if key not in content:
        raise InputError(f"{PARAMS} has no section '{key}'")
    return validate_params(model, content[key], f"{key}.")


def _line(fault: dict[str, Any], model: type[Section], prefix: str) -> str:
    key = prefix + ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_siblings(fault, model))
        return f"params.yaml: unknown key '{key}' = {fault['input']!r}; allowed here: {allowed}"
    if fault["type"] == "missing":
        return f"params.yaml: '{key}' is missing"
    allowed = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], dict) and fault["type"] == "value_error":  # a section's own rule names its key
        return f"params.yaml: {f'{key}.' if key else ''}{allowed}"
    return f"params.yaml: {key} = {fault['input']!r}: {allowed[0].lower()}{allowed[1:]}"


def _siblings(fault: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """Names of the fields beside an unknown key."""
    for part in fault["loc"][:-1]:
        field = model.model_fields.get(str(part)) if isinstance(model, type) else None
        inner = field.annotation if field else model
        found = [kind for kind in (inner, *getattr(inner, "__args__", ())) if _is_section(kind)]
        model = found[0] if found else model
    return list(model.model_fields)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
