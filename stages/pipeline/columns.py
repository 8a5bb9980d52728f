"""Lines for the terminal: a label, and words next to it that are wrapped into a column."""

import textwrap

WIDTH = 100  # characters, where lines are wrapped


def label_lines(label: str, words: str, label_width: int) -> str:
    """`label` and `words` in two columns, `label_width` the width of the first; only spaces are broken at."""
    indent = " " * (label_width + 2)
    return textwrap.fill(
        words,
        WIDTH,
        initial_indent=f"{label:{label_width}}  ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
