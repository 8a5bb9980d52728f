"""Numbers as the source reports print them."""


def scientific(value: float | None) -> str:
    """`1e-3`, `5e-4`, `0`; `-` for nothing."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plain(value: float | None) -> str:
    """`50`, `0.7`, `1.0`; `-` for nothing."""
    return "-" if value is None else str(value)


def starred(values: list[float]) -> list[str]:
    """Two decimals; a star behind the highest, as printed."""
    printed = [f"{value:.2f}" for value in values]
    best = max((float(one) for one in printed), default=None)
    return [f"{one}*" if float(one) == best else one for one in printed]


def beside(found: float, reported: float | None) -> tuple[str, str]:
    """The report's number and ours minus it; `-` where the report has none."""
    return ("-", "-") if reported is None else (f"{reported:.2f}", f"{found - reported:+.2f}")
