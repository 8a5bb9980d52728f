"""A params file of any bytes is read as plain data, or ends in one line that says where and why not."""

import time

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.params.experiment import load_experiment
from stages.params.section import read_params

PARAMS = (ROOT / "params.yaml").read_text()
BILLION = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
)


def read_error(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_experiment(path)
    message = str(error.value).replace(str(path), "params.yaml")
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9: 1", "params.yaml is not UTF-8 text (byte 3); save it as UTF-8"),
        ("profile: x".encode("utf-16"), "params.yaml is not UTF-8 text (byte 0); save it as UTF-8"),
        ("profile: x".encode("utf-16-le"), "params.yaml is not valid YAML: "),
        (b"a: \x00", "params.yaml is not valid YAML: "),
        (b"seed: !!int abc", "params.yaml is not valid YAML: line 1, column 7: tags (! and !!) are not allowed"),
        (b"a: !!python/object/apply:os.system [ls]", "tags (! and !!) are not allowed"),
        (
            b"%YAML 1.1\n---\na: 010",
            "params.yaml is not valid YAML: line 2, column 1: directives (%) are not allowed",
        ),
        (
            b"a: &x 1\nb: *x",
            "params.yaml is not valid YAML: line 1, column 4: anchors and aliases (& and *) are not allowed",
        ),
        (BILLION.encode(), "anchors and aliases (& and *) are not allowed"),
        (b"a: " + b"[" * 3000, "params.yaml is not valid YAML: line 1, column 23: more than 20 levels"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "line 1, column 23: more than 20 levels"),
        (b"- " * 3000, "more than 20 levels"),
        (
            b"seed: " + b"9" * 5000,
            "params.yaml is not valid YAML: line 1, column 7: a value of more than 1000 characters",
        ),
        (b"seed: 0x" + b"f" * 5000, "line 1, column 7: a value of more than 1000 characters"),
        (b"k" * 5000 + b": 1", "params.yaml is not valid YAML: "),
        (b"? " + b"k" * 5000 + b"\n: 1", "line 1, column 3: a value of more than 1000 characters"),
        (b'"a\\nb": 1', r"params.yaml is not valid YAML: line 1, column 1: 'a\nb': control characters are not allowed"),
        (b"a: |\n  two\n  lines\n", r"line 1, column 4: 'two\nlines\n': control characters are not allowed"),
        (b'a: "\\e[31m"', r"line 1, column 4: '\x1b[31m': control characters are not allowed"),
        (b'a: "\\ud800"', r"line 1, column 4: '\ud800': control characters are not allowed"),
        (b'a: "\\u202e"', r"line 1, column 4: '\u202e': control characters are not allowed"),
        (b"a: 2001-13-45", "params.yaml is not valid YAML: "),
        (b"a: 1\na: 2", 'params.yaml is not valid YAML: line 2, column 1: found duplicate key "a" with value'),
        (b"a: [1", "params.yaml is not valid YAML: line "),
        (b"a: 1\n---\nb: 2", "params.yaml is not valid YAML: line "),
        (b"{[a]: 1, {b: 1}: 2}", "params.yaml"),
        (b"", "params.yaml has no keys; expected sections such as 'segmentation'"),
        (b"[1, 2]", "params.yaml has no keys; expected sections such as 'segmentation'"),
        (b"1: 2", "params.yaml: 1 = 2: unknown key; allowed here: profile, seed"),
        (b"a: 1\n" + b"#" * 2_000_000, "params.yaml has more than 1000000 bytes"),
    ],
)
def test_what_is_not_plain_yaml_is_named_in_one_line(tmp_path, content, message):
    assert message in read_error(tmp_path / "params.yaml", content)


def test_large_files_are_refused_in_little_time(tmp_path):
    for content in (b"[" * 900_000, b"{" * 900_000, b"- " * 400_000, b"? " * 400_000, b"!" * 900_000, b"'" * 900_000):
        start = time.perf_counter()
        read_error(tmp_path / "params.yaml", content)
        assert time.perf_counter() - start < 10


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + PARAMS.replace("\n", "\r\n").encode())
    assert read_params(path) == read_params(ROOT / "params.yaml")
