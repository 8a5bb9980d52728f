"""The numbers in the README are those of the committed report."""

import re
import subprocess

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed_tables():
    """The report's tables in markdown by name, as committed: a run on another CPU may have changed the files."""

    def git(*command):
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        paths = git("ls-tree", "--name-only", "HEAD", "reports/tables/").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return {path: git("show", f"HEAD:{path}").strip() for path in paths if path.endswith(".md")}


def test_the_readme_shows_tables_of_the_report_and_no_other_results():
    rest = README
    for table in committed_tables().values():
        rest = rest.replace(table, "")
    for name in ("Table 1.", "Table 2.", "Table 4.", "Classification."):
        assert f"__{name}" in README
        assert f"__{name}" not in rest
    assert not re.findall(r"^\|.*\d\.\d\d \|", rest, re.MULTILINE)
