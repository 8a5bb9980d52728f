"""Compare the experiments of the last commit with it: what each one changed in params and headline metrics.

vitlab compare
"""

import argparse
import shutil
from collections.abc import Sequence

from stages.compare.experiments import SUCCESS, Experiment, Keys, changed_keys, load_experiments
from stages.core.stage import stage

WIDTH = 110  # characters, where the output is not a terminal
MISSING = "-"
NO_EXPERIMENTS = """No experiments on {baseline}. Run one, for example:
  dvc exp run -S retrieval.lr=3e-4
`dvc exp show --all-commits` lists those of other commits."""

Column = tuple[Keys, list[str]]  # a header's words, one per line, and a cell per row


def format_comparison(baseline: Experiment, experiments: list[Experiment], width: int) -> str:
    """A table with a row for the baseline and for each experiment, in as many blocks as `width` characters need.

    Columns are the params and metrics in which they differ. A metric's cell also has its difference from the baseline.
    """
    if not experiments:
        return NO_EXPERIMENTS.format(baseline=baseline.name)
    rows = [baseline, *experiments]
    params = changed_keys(baseline.params, [row.params for row in experiments])
    finished = [row for row in experiments if row.state == SUCCESS]
    metrics = changed_keys(baseline.metrics, [row.metrics for row in finished])

    columns: list[Column] = []
    if len(finished) < len(experiments):
        columns.append((("state",), [MISSING, *(row.state for row in experiments)]))
    for keys in params:
        columns.append((keys, [str(row.params.get(keys, MISSING)) for row in rows]))
    for keys in metrics:
        columns.append((keys, [_metric_cell(row, baseline, keys) for row in rows]))
    names: Column = (("experiment",), [row.name for row in rows])
    blocks = [_format_block(block) for block in _split(names, columns, width)]
    if not metrics:
        blocks.append("No headline metric differs.")
    return "\n\n".join(blocks)


def _metric_cell(row: Experiment, baseline: Experiment, keys: Keys) -> str:
    """`53.20 -0.32`; without a difference where there is none, or no number to compare with."""
    value = row.metrics.get(keys)
    reference = baseline.metrics.get(keys)
    if value is None:
        return MISSING
    if reference is None or value == reference:
        return f"{value:.2f}"
    return f"{value:.2f} {value - reference:+.2f}"


def _split(names: Column, columns: list[Column], width: int) -> list[list[Column]]:
    """The columns in blocks of at most `width` characters; each block starts with the names."""
    blocks = [[names]]
    for column in columns:
        if len(blocks[-1]) > 1 and _block_width([*blocks[-1], column]) > width:
            blocks.append([names])
        blocks[-1].append(column)
    return blocks


def _column_width(column: Column) -> int:
    header, cells = column
    return max(len(text) for text in (*header, *cells))


def _block_width(columns: list[Column]) -> int:
    return sum(_column_width(column) + 2 for column in columns) - 2


def _format_block(columns: list[Column]) -> str:
    height = max(len(header) for header, _ in columns)
    texts = []
    for header, cells in columns:
        empty = [""] * (height - len(header))
        line = "-" * _column_width((header, cells))
        texts.append([text.ljust(len(line)) for text in (*empty, *header, line, *cells)])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*texts, strict=True))


def main() -> None:
    baseline, experiments = load_experiments()
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    print(format_comparison(baseline, experiments, width))


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    with stage("compare", record=False):
        main()


if __name__ == "__main__":
    run_command()
