"""Params changed by dotted key, before they are validated."""

from collections.abc import Sequence
from typing import Any

from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.params.plain_yaml import parse_yaml
from stages.params.section import PARAMS

EVERY_NAME = "*"


def set_param(params: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key in place; `*` in the key stands for every name of that section.

    Raises `InputError` if the params have no such section.
    """
    for section in _sections(params, key):
        section[key.split(".")[-1]] = value


def remove_param(params: dict[str, Any], key: str) -> None:
    """Remove a dotted key in place. Raises `InputError` if the params do not have it."""
    name = key.split(".")[-1]
    for section in _sections(params, key):
        if name not in section:
            raise InputError(f"{PARAMS} has no key '{key}'")
        del section[name]


def _sections(params: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The sections that hold the last name of a dotted key."""
    *parents, _ = key.split(".")
    sections: list[Any] = [params]
    for parent in parents:
        if parent == EVERY_NAME:
            sections = [child for section in sections for child in section.values()]
        else:
            sections = [section.get(parent) for section in sections]
        if not all(isinstance(section, dict) for section in sections):
            raise InputError(f"{PARAMS} has no key '{key}'")
    return sections


def apply_overrides(params: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides in place, as `dvc exp run -S` does. Raises `InputError` for one that is wrong.

    `KEY=VALUE` changes a param, `+KEY=VALUE` adds one, and `~KEY` removes one.
    """
    for override in overrides:
        if override.startswith("~"):
            remove_param(params, override[1:])
            continue
        key, _, value = override.removeprefix("+").partition("=")
        try:
            parsed = parse_yaml(value)
        except ValueError as error:
            raise InputError(f"{key} = {quote_value(value)}: not valid YAML: {error}") from error
        set_param(params, key, parsed)
