"""Values in messages: one short line, whatever they hold."""

import time
from pathlib import Path

import pytest

from stages.core.messages import quote_value


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("name", "'name'"),
        ("it's", '"it\'s"'),
        ("ä", "'ä'"),
        (12, "12"),
        (None, "None"),
        (["a", 1.5], "['a', 1.5]"),
        (Path("a/b"), "'a/b'"),
        ("two\nlines", r"'two\nlines'"),
        ("\x1b[31mred", r"'\x1b[31mred'"),
        ("\u2028\u202e", r"'\u2028\u202e'"),  # a line separator, and an override of the reading direction
        ("\ud800", r"'\ud800'"),  # a lone surrogate cannot be encoded
    ],
)
def test_values_are_quoted_as_in_source_code(value: object, quoted: str) -> None:
    assert quote_value(value) == quoted


class Printed:
    def __repr__(self) -> str:
        return "<printed\n\x1b[31m>" + "x" * 1000


def test_an_object_is_quoted_in_one_short_line() -> None:
    assert quote_value(Printed()).startswith(r"<printed\n\x1b[31m>x")


def nested_list(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_values_are_cut_at_100_characters() -> None:
    values = ["x" * 200_000, "\x1b" * 99, 10**5000, -(10**1000), ["x" * 200] * 200, {"k" * 300: "v" * 300}, Printed()]
    for value in [*values, b"\0" * 500, nested_list(100_000)]:  # pytest would print parameters in full
        quoted = quote_value(value)
        assert len(quoted) <= 100
        assert quoted.isprintable()


def test_a_value_of_many_aliases_is_quoted_at_once() -> None:
    value: list = ["x"]
    for _ in range(30):  # 9 to the power of 30 items, as of YAML aliases
        value = [value] * 9
    start = time.perf_counter()
    assert len(quote_value(value)) <= 100
    assert time.perf_counter() - start < 1
