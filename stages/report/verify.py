"""Compares `reports/results.csv` with the committed one, after `make repro`.

    vitlab verify
    vitlab verify --revision HEAD~1

Headline numbers are the means over seeds that have a 95 % interval: all numbers of the original's tables, and what
claims on attention rest on. Only they are judged, by the committed interval. The exit code is 1 if one is outside,
and 2 if the files cannot be compared.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from stages.core.atomic import write_text
from stages.core.messages import join_names
from stages.core.stage import InputError, first_line, stage
from stages.params.plain_yaml import parse_yaml
from stages.params.section import PARAMS
from stages.report.committed import describe_files, read_committed, resolve
from stages.report.markdown import escape
from stages.report.numbers import MISSING, format_number, format_range
from stages.report.original import load_original
from stages.report.section import ROOT
from stages.report.tables import Table

RESULTS = ROOT / "results.csv"
PAGE = ROOT / "report.html"
COMPARISON = ROOT / "verify.md"
KEY = ["table", "run", "metric", "seed"]
TEXT = [*KEY, "profile"]
NUMBERS = ["value", "low", "high"]


class Status(StrEnum):
    """How a number compares with the committed one."""

    EQUAL = "equal"
    AS_PRINTED = "equal as printed"
    WITHIN = "within the interval"
    OUTSIDE = "outside"
    NOT_HERE = "not here"
    NOT_COMMITTED = "not committed"


@dataclass(frozen=True)
class Comparison:
    """Both files' numbers as `compare` returns them, and the params that differ, by dotted key.

    `revision` is the committed side as the user names it, `commit` its hash.
    """

    revision: str
    commit: str
    numbers: pd.DataFrame
    changed_params: list[str]

    @property
    def headline(self) -> pd.DataFrame:
        """The numbers that are judged."""
        return self.numbers[self.numbers["headline"]]

    @property
    def secondary(self) -> pd.DataFrame:
        """Numbers of single seeds, and numbers without an interval."""
        return self.numbers[~self.numbers["headline"]]

    def count(self, status: Status) -> int:
        """How many headline numbers have this status."""
        return int((self.headline["status"] == status).sum())

    def caption(self) -> str:
        """What is compared."""
        return f"Headline numbers, compared with those of {self.revision} ({self.commit})"

    def summary(self) -> Table:
        """One row per table with the count of equal numbers; below it, every number that is not equal."""
        rows = []
        for name, group in self.headline.groupby("table", sort=False):
            metrics = group["metric"].unique()
            title = table_title(name)
            equal = (group["status"] == Status.EQUAL).sum()
            label = f"{title}: {metrics[0]}" if len(metrics) == 1 else title
            rows.append({"Number": label, "Status": f"{equal} of {len(group)} equal"})
            for _, number in group[group["status"] != Status.EQUAL].iterrows():
                label = number["run"] if len(metrics) == 1 else f"{number['run']} {number['metric']}"
                rows.append({"Number": f"- {label}"} | number_cells(number))
        columns = ["Number", "Committed", "95 % interval", "Here", "Change", "Status"]
        frame = pd.DataFrame(rows, columns=columns, dtype=object).fillna("")
        return Table(self.caption(), frame, left=("Number", "Status"))

    def listing(self) -> Table:
        """Every headline number, with both intervals."""
        rows = []
        for _, number in self.headline.iterrows():
            cells = {"Table": table_title(number["table"]), "Run": number["run"], "Metric": number["metric"]}
            cells |= number_cells(number)
            cells["95 % interval here"] = interval_cell(number["low_here"], number["high_here"])
            rows.append(cells)
        return Table(self.caption(), pd.DataFrame(rows, dtype=object), left=("Table", "Run", "Metric", "Status"))

    def secondary_listing(self) -> Table:
        """The secondary numbers that are not equal, with all digits."""
        rows = []
        for _, number in self.secondary[self.secondary["status"] != Status.EQUAL].iterrows():
            key = [table_title(number["table"]), number["run"], number["metric"], number["seed"] or MISSING]
            values = [MISSING if np.isnan(value) else repr(value) for value in (number["value"], number["value_here"])]
            rows.append([*key, *values])
        columns = ["Table", "Run", "Metric", "Seed", "Committed", "Here"]
        return Table.from_rows("Numbers of single seeds or without an interval that are not equal", columns, rows, 3)

    def remarks(self) -> list[str]:
        """What else is the same or not, one line each."""
        headline = self.headline
        same_interval = pd.Series(True, index=headline.index)
        for bound in ("low", "high"):
            same_interval &= headline[bound].map(format_number) == headline[f"{bound}_here"].map(format_number)
        lines = [
            f"Intervals: {count_true(same_interval)} as printed.",
            f"Numbers of single seeds or without an interval: {count_true(self.secondary['status'] == Status.EQUAL)}.",
            f"Files under {ROOT}/: {describe_files(self.commit)}.",
        ]
        if self.changed_params:
            names = join_names(self.changed_params)
            lines.append(f"Params differ from those of {self.revision}, so these are two experiments: {names}.")
        return lines

    def verdict(self) -> str:
        """In one line, whether the committed numbers were reproduced, and the counts of all statuses that occur."""
        counts = ", ".join(f"{self.count(status)} {status}" for status in Status if self.count(status))
        if self.changed_params:
            return f"Another experiment: {counts}."
        failed = self.count(Status.OUTSIDE) or self.count(Status.NOT_HERE)
        return f"{'Not reproduced' if failed else 'Reproduced'}: {counts}."


def parse_numbers(text: str, source: str) -> pd.DataFrame:
    """The rows of a `results.csv`: `NUMBERS` and `profile`, indexed by `KEY`; means have an empty seed.

    Raises `InputError` if columns are missing or hold no numbers.
    """
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            usecols=[*TEXT, *NUMBERS],
            dtype=dict.fromkeys(TEXT, str) | dict.fromkeys(NUMBERS, float),
            # Only numbers may be missing: a run may be named NA or null.
            keep_default_na=False,
            na_values={name: [""] for name in NUMBERS},
        )
    except ValueError as error:
        raise InputError(f"{source} is not a file of this version: {first_line(error)}") from error
    return frame.set_index(KEY)


def compare(committed: pd.DataFrame, here: pd.DataFrame) -> pd.DataFrame:
    """Every number of either file, the committed ones first.

    Columns are `KEY`, `NUMBERS` as committed, the same with `_here`, `status`, and `headline`: whether the number is a
    mean with an interval.
    """
    index = committed.index.append(here.index.difference(committed.index, sort=False))
    numbers = committed[NUMBERS].reindex(index).join(here[NUMBERS].reindex(index), suffixes=("", "_here"))
    is_committed = index.isin(committed.index)
    value = numbers["value"]
    value_here = numbers["value_here"]
    conditions = {
        Status.NOT_HERE: ~index.isin(here.index),
        Status.NOT_COMMITTED: ~is_committed,
        Status.EQUAL: (value == value_here) | (value.isna() & value_here.isna()),
        Status.AS_PRINTED: value.map(format_number) == value_here.map(format_number),
        Status.WITHIN: value_here.between(numbers["low"], numbers["high"]),
    }
    numbers["status"] = np.select(list(conditions.values()), list(conditions), Status.OUTSIDE)
    has_interval = numbers["low"].where(is_committed, numbers["low_here"]).notna()
    numbers["headline"] = has_interval & (index.get_level_values("seed") == "")
    return numbers.reset_index()


def parse_params(text: str, source: str) -> dict[str, Any]:
    """Params by section. Raises `InputError` if they are not plain YAML."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{source} is not valid YAML: {error}") from error


def list_changes(committed: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Dotted keys of the params that differ, without the sections of profiles other than the active one."""
    flat = flatten(committed, here["profile"])
    flat_here = flatten(here, here["profile"])
    return [key for key in flat | flat_here if not (key in flat and key in flat_here and flat[key] == flat_here[key])]


def flatten(params: dict[str, Any], profile: str) -> dict[str, Any]:
    """Params by dotted key, of the sections that the profile reads."""
    sections = {}
    for name, section in params.items():
        is_profile = isinstance(section, dict) and "backbone" in section
        if name == profile or not is_profile:
            sections[name] = section
    return pd.json_normalize(sections).to_dict("records")[0]


def table_title(name: str) -> str:
    """`Table 1` for one of the original's tables; the name in `results.csv` for others."""
    original = load_original().get(name)
    return original["title"] if original else name


def number_cells(number: pd.Series) -> dict[str, str]:
    """A headline number as cells of a table, by column."""
    value = number["value"]
    value_here = number["value_here"]
    return {
        "Committed": MISSING if np.isnan(value) else format_number(value),
        "95 % interval": interval_cell(number["low"], number["high"]),
        "Here": MISSING if np.isnan(value_here) else format_number(value_here),
        "Change": format_change(value_here - value),
        "Status": number["status"],
    }


def interval_cell(low: float, high: float) -> str:
    """`59.40 to 61.03`; `-` without an interval."""
    return MISSING if np.isnan(low) else format_range(low, high)


def format_change(change: float) -> str:
    """`-0.14`; `+3e-06` for one that two decimals do not show; `-` for none."""
    if np.isnan(change) or change == 0:
        return MISSING
    size = format_number(abs(change))
    sign = "+" if change > 0 else "-"
    return f"{sign}{size}" if float(size) else f"{change:+.0e}"


def count_true(condition: pd.Series) -> str:
    """`all 48 equal`, or `46 of 48 equal`."""
    return f"all {len(condition)} equal" if condition.all() else f"{condition.sum()} of {len(condition)} equal"


def load_comparison(revision: str) -> Comparison:
    """Read both sides. Raises `InputError` if there is nothing to compare."""
    commit = resolve(revision)
    # `report.html` is not committed: a clone in which nothing has run has only the committed `results.csv`.
    if not (RESULTS.exists() and PAGE.exists()):
        raise InputError("nothing has run here yet; run `make repro`")
    committed = parse_numbers(read_committed(commit, RESULTS), f"{RESULTS} of {revision}")
    here = parse_numbers(RESULTS.read_text(encoding="utf-8"), str(RESULTS))
    profile = join_names(sorted(set(committed["profile"])))
    profile_here = join_names(sorted(set(here["profile"])))
    if profile != profile_here:
        raise InputError(f"{RESULTS} is of profile '{profile_here}', that of {revision} of profile '{profile}'")
    numbers = compare(committed, here)
    if not (numbers["headline"] & ~numbers["status"].isin([Status.NOT_HERE, Status.NOT_COMMITTED])).any():
        raise InputError(f"{RESULTS} and that of {revision} have no number with an interval in common")
    params = parse_params(read_committed(commit, PARAMS), f"{PARAMS} of {revision}")
    params_here = parse_params(PARAMS.read_text(encoding="utf-8"), str(PARAMS))
    return Comparison(revision, commit, numbers, list_changes(params, params_here))


def verify(revision: str) -> bool:
    """Print the comparison with a revision, and write all of it to `COMPARISON`; returns whether no number is outside.

    Raises `InputError` if there is nothing to compare, or if a headline number is missing though no param differs.
    """
    comparison = load_comparison(revision)
    remarks = comparison.remarks()
    verdict = comparison.verdict()
    print(comparison.summary().plain(), "", *remarks, f"In full: {COMPARISON}", "", verdict, sep="\n")
    tables = [table.markdown() for table in (comparison.listing(), comparison.secondary_listing()) if table]
    notes = "\n".join(f"- {escape(line)}" for line in remarks)
    write_text(COMPARISON, "\n\n".join([f"# {escape(verdict)}", notes, *tables]) + "\n")
    if comparison.count(Status.OUTSIDE):
        return False
    missing = comparison.count(Status.NOT_HERE)
    if missing and not comparison.changed_params:
        raise InputError(f"{RESULTS} lacks {missing} of the committed headline numbers, though no param differs")
    return True


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="HEAD", help="the commit to compare with (default: HEAD)")
    args = parser.parse_args(arguments)
    with stage("verify", record=False):
        is_reproduced = verify(args.revision)
    sys.exit(0 if is_reproduced else 1)


if __name__ == "__main__":
    run_command()
