"""The command `vitlab`: its subcommands, where it runs, and what it imports."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
from conftest import ROOT

from stages.command.__main__ import SUBCOMMANDS, main


def run(capsys, *arguments):
    """The exit code, the output, and the error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("vitlab", scripts["vitlab"], "console_scripts").load() is main


def test_help_lists_the_subcommands_without_importing_torch():
    report = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    code = f"{report}; from stages.command.__main__ import main; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: vitlab ")
    for name, subcommand in SUBCOMMANDS.items():
        assert f"{name:<10}{subcommand.summary}\n" in result.stdout
    assert result.stdout.endswith("False\n")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommands_help_shows_its_usage_and_an_example(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, output, _ = run(capsys, name, "--help")
    assert code == 0
    assert output.startswith(f"usage: vitlab {name} [-h]")
    assert re.search(f"^ *vitlab {name}", output, re.MULTILINE)


def test_arguments_go_to_the_subcommand(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(capsys, "caption", "nowhere.jpg") == (2, "", "caption: nowhere.jpg: missing\n")
    code, _, error = run(capsys, "look", "nonsense", "nowhere.jpg")
    assert code == 2
    assert "vitlab look: error: argument kind: invalid choice: 'nonsense'" in error


def test_an_unknown_subcommand_is_named(capsys):
    code, _, error = run(capsys, "paint", "x.jpg")
    assert code == 2
    assert "vitlab: error: argument SUBCOMMAND: invalid choice: 'paint' (choose from 'predict'" in error


def test_it_runs_in_its_own_checkout_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = f"vitlab: no params.yaml here; run it in the checkout: cd {ROOT}\n"
    assert run(capsys, "caption", "x.jpg") == (2, "", expected)
    (tmp_path / "params.yaml").touch()
    (tmp_path / "stages").mkdir()
    code, _, error = run(capsys, "caption", "x.jpg")
    assert code == 2
    assert error.startswith(f"vitlab: this checkout has its own stages, but vitlab runs {ROOT / 'stages'}; use: python")
    assert error.count("\n") == 1
