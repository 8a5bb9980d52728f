"""Text as markdown: params, class names and captions may hold anything, and must appear as they are."""

import re

from stages.core.messages import printable_line

# Characters that begin markup anywhere in a line; `$` begins a formula on GitHub.
MARKUP = re.compile(r"([\\`*\[\]|~#$])")
# Single underscores within a word, as in the names of most runs, are text.
UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is markdown already, so that `escape` leaves it as it is."""

    __slots__ = ()


def escape(text: str) -> Markdown:
    """Markdown that shows `text` as it is, in one line."""
    if isinstance(text, Markdown):
        return text
    text = printable_line(text)
    text = MARKUP.sub(r"\\\1", text)
    text = UNDERSCORE.sub(r"\\_", text)
    return Markdown("".join(HTML.get(character, character) for character in text))


def code(text: str) -> Markdown:
    """`text` in the font for code, where nothing is markup but the `|` of tables: text with one is escaped instead."""
    text = printable_line(text)
    if "|" in text:
        return escape(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""  # a backtick at either end would be read as part of the fence
    return Markdown(f"{fence}{padding}{text}{padding}{fence}")


def prose(text: str) -> Markdown:
    """Our own sentences, in which names stand between backticks: those are code, and the rest is text as it is."""
    parts = text.split("`")
    return Markdown("".join(code(part) if index % 2 else escape(part) for index, part in enumerate(parts)))


def join(texts: list[str], separator: str = ", ") -> Markdown:
    """The texts as markdown with `separator` between them. Jinja's own `join` would make plain text of markdown."""
    return Markdown(separator.join(map(escape, texts)))
