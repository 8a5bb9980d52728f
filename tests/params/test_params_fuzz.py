"""Random mutations of params.yaml are valid, or end in one short line without control characters."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.stage import InputError
from stages.params.experiment import Experiment, load_experiment
from stages.params.plain_yaml import parse_yaml
from stages.params.section import read_params, validate_params

CONTENT = read_params(ROOT / "params.yaml")
TEXT = (ROOT / "params.yaml").read_bytes()

# Deterministic, so that a failure is the change's own; the timing of a busy machine is no failure.
fuzzed = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**30, -(10**30), 2**32])
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["", "base", "a-seed1", "../x", "x; touch F", "$(touch F)", "http://[", "https://a.org/x#size=z"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4), max_leaves=8
)
# Parts of YAML's syntax, and what is not text.
SYNTAX = r"""! !!int !!binary !!timestamp & * &a *a %YAML 1.1 [ ] { } ? : - | > ' " # , << = @ ` ~ --- ... \ \x0a \ud800
0x 0o9 1e999 .nan 2001-99-99 0001-01-01T00:00:00+10:00"""
SPACES = ["\n", "\r", "\t", "\0", "\x1b[31m", "\x85", "\u2028", "\ufeff", "- ", ": ", "? ", "\n  ", " "]
snippets = st.sampled_from([*SYNTAX.split(), *SPACES, "[" * 50]).map(str.encode) | st.binary(max_size=8)


def keys(content: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [deeper for key, value in items for deeper in ((*path, key), *keys(value, (*path, key)))]


KEYS = keys(CONTENT)
changes = st.tuples(st.sampled_from(KEYS), st.sampled_from(["replace", "remove", "rename", "add"]), scalars, values)


def change(content: Any, path: tuple, kind: str, name: Any, value: Any) -> None:
    *sections, last = path
    for key in sections:
        content = content[key]
    if kind == "replace":
        content[last] = value
    elif kind == "remove":
        del content[last]
    elif isinstance(content, list):
        content.append(value)
    else:
        content[name] = content.pop(last) if kind == "rename" else value


def check(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        message = str(error)
        assert message.isprintable(), repr(message)
        assert len(message) < 500, message


@fuzzed
@given(st.lists(changes, min_size=1, max_size=3))
def test_changed_values_and_keys(changed):
    content = copy.deepcopy(CONTENT)
    for arguments in changed:
        try:
            change(content, *arguments)
        except (KeyError, IndexError, TypeError):  # an earlier change has removed the section
            continue
    check(lambda: validate_params(Experiment, content))


@fuzzed
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 20), snippets), min_size=1, max_size=3))
def test_inserted_and_removed_bytes(changed):
    text = TEXT
    for position, removed, inserted in changed:
        text = text[:position] + inserted + text[position + removed :]
    with NamedTemporaryFile(prefix="params-") as file:
        path = Path(file.name)
        path.write_bytes(text)
        check(lambda: load_experiment(path))


@settings(parent=fuzzed, max_examples=1000)
@given(st.lists(snippets | st.sampled_from([b"a", b"1"]), max_size=12).map(b"".join))
def test_any_text_is_plain_yaml_or_a_value_error(text):
    try:
        parse_yaml(text.decode(errors="replace"))
    except ValueError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 300
