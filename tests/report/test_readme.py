"""The numbers in the README are those of the committed report."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
TABLES = ROOT / "reports/tables"


@pytest.mark.parametrize("name", ["table1_segmentation", "table2_captioning", "table4_retrieval", "classification"])
def test_the_readme_shows_the_reports_table(name):
    assert (TABLES / f"{name}.md").read_text().strip() in README


def test_no_other_table_in_the_readme_has_numbers_of_results():
    shown = [table.read_text().strip() for table in TABLES.glob("*.md")]
    rest = README
    for table in shown:
        rest = rest.replace(table, "")
    assert not re.findall(r"^\|.*\d+\.\d\d \|", rest, re.MULTILINE)
