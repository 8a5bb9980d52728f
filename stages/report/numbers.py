"""Numbers as text, in the formats of the original's tables."""

from collections.abc import Mapping

import pandas as pd

from stages.report.markdown import Markdown

MISSING = "-"  # the original's cell without a value


def format_number(value: float) -> str:
    """`59.40`: the two decimals of the numbers in all of the original's tables."""
    return f"{value:.2f}"


def format_scientific(value: float | None) -> str:
    """`1e-3`, `5e-4`, `0`; `-` for None."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_optional(value: float | None) -> str:
    """`50`, `0.7`, `1.0`; `-` for None."""
    return MISSING if value is None else str(value)


def format_range(low: float, high: float, digits: int = 2) -> str:
    """`59.40 to 61.03`."""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def format_interval(metrics: Mapping[str, float], key: str, digits: int = 2) -> str:
    """The 95 % interval of a metric that the run itself has measured, `59.40 to 61.03`."""
    return format_range(metrics[f"{key}_low"], metrics[f"{key}_high"], digits)


def format_best(values: pd.Series, epochs: pd.Series) -> str:
    """The mean over seeds of the best epoch's values, and the epochs: `49.23 (13)`, `49.23 (9 to 13)`."""
    first = int(epochs.min())
    last = int(epochs.max())
    return f"{format_number(values.mean())} ({first if first == last else f'{first} to {last}'})"


def star_highest(values: list[float]) -> list[str]:
    """Two decimals; a star after the highest, also after all that print the same."""
    texts = [format_number(value) for value in values]
    highest = max((float(text) for text in texts), default=None)
    # The star is no markup: it begins nothing, as nothing follows it.
    return [Markdown(f"{text}*") if float(text) == highest else text for text in texts]
