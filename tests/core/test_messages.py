"""Values in messages: one short line, whatever they hold."""

import time
from pathlib import Path

import pytest

from stages.core.messages import hide_credentials, quote_value


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


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://user:pa55@host.org/a/b.pth?v=1#sha256=00", "https://***@host.org/a/b.pth?v=1#sha256=00"),
        ("https://pa55@host.org:8080/x", "https://***@host.org:8080/x"),
        ("http://user:pa55@pa55@[::1]/x", "http://***@[::1]/x"),
        ("HTTP://user:pa55@host", "HTTP://***@host"),
        ("postgresql+psycopg2://user:pa55/pa55@db/runs", "postgresql+psycopg2://***@db/runs"),
        (
            "no store at mysql://u:pa55@h/d; nor 'https://u:pa55@h/x'",
            "no store at mysql://***@h/d; nor 'https://***@h/x'",
        ),
        ("https://h/x?v=2&access_token=pa55&b=3#size=1", "https://h/x?v=2&access_token=***&b=3#size=1"),
        (
            "https://h/x?X-Amz-Credential=pa55&X-Amz-Signature=pa55",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
    ],
)
def test_credentials_in_urls_are_hidden(text, hidden):
    assert hide_credentials(text) == hidden
    assert hide_credentials(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////tmp/a@b/mlflow.db",
        "https://host:8080/models/vit@main/x.pth",
        "https://host.org/x?monkey=1&v=2",
        "timm/vit_small@0123",
        "name@host.org, see https://host.org/",
        "",
    ],
)
def test_text_without_credentials_stays(text):
    assert hide_credentials(text) == text


def test_hiding_credentials_takes_linear_time():
    start = time.perf_counter()
    hide_credentials("a://u:p" * 20_000 + "a." * 20_000 + "?key" * 20_000 + "u:" * 20_000)
    assert time.perf_counter() - start < 1
