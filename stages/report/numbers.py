"""Numbers as text, in the formats of the original's tables."""

from typing import Any


def format_scientific(value: float | None) -> str:
    """`1e-3`, `5e-4`, `0`; `-` for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_optional(value: float | None) -> str:
    """`50`, `0.7`, `1.0`; `-` for None."""
    return "-" if value is None else str(value)


def format_interval(metrics: dict[str, Any], key: str, digits: int = 2) -> str:
    """The 95 % interval of a metric, `59.40 to 61.03`."""
    return f"{metrics[f'{key}_low']:.{digits}f} to {metrics[f'{key}_high']:.{digits}f}"


def star_highest(values: list[float]) -> list[str]:
    """Two decimals; a star after the highest, also after all that print the same."""
    texts = [f"{value:.2f}" for value in values]
    highest = max((float(text) for text in texts), default=None)
    return [f"{text}*" if float(text) == highest else text for text in texts]
