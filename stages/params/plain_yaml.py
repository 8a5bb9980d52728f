"""YAML as plain data: mappings, lists, numbers and lines of text; bounded, without tags, anchors or control characters.

YAML 1.2, as DVC reads it: `1e-5` is a number (for PyYAML, which reads YAML 1.1, it is a string).
"""

from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, ScalarEvent
from ruamel.yaml.parser import Parser

from stages.core.messages import quote_value

MAX_LEVELS = 20  # params.yaml has 5; ruamel builds values recursively
MAX_CHARACTERS = 1000  # of a key or value. Python reads no integer of more than 4300 digits
MAX_PROBLEM = 200  # characters of an error message


class _PlainParser(Parser):
    """Refuses while parsing, before ruamel builds any value: aliases of aliases can stand for gigabytes."""

    def __init__(self, loader: Any):
        super().__init__(loader)
        self.levels = 0

    def get_event(self) -> Any:
        """The next part of the text. Raises `MarkedYAMLError` if it is not plain."""
        event = super().get_event()
        if isinstance(event, CollectionStartEvent):
            self.levels += 1
        elif isinstance(event, CollectionEndEvent):
            self.levels -= 1
        problem = self._problem(event)
        if problem:
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return event

    def _problem(self, event: Any) -> str | None:
        if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            return "directives (%) are not allowed"
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            return "anchors and aliases (& and *) are not allowed"
        if getattr(event, "tag", None):
            return "tags (! and !!) are not allowed"
        if self.levels > MAX_LEVELS:
            return f"more than {MAX_LEVELS} levels"
        if isinstance(event, ScalarEvent):
            if len(event.value) > MAX_CHARACTERS:
                return f"a value of more than {MAX_CHARACTERS} characters"
            if not event.value.isprintable():  # a newline, an escape sequence of a terminal, half of a surrogate pair
                return f"{quote_value(event.value)}: control characters are not allowed"
        return None


def parse_yaml(text: str) -> Any:
    """Parse plain YAML. Raises `ValueError` with one line of bounded length on the first problem."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = _PlainParser
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + _shorten(error.problem or error.context)) from error
    except (YAMLError, ValueError, OverflowError) as error:  # the last two: dates such as 2001-13-45
        raise ValueError(_shorten(error)) from error


def _shorten(problem: object) -> str:
    """Return ruamel's words in one line; they repeat parts of the text."""
    words = " ".join(str(problem).split())
    return words if len(words) <= MAX_PROBLEM else words[: MAX_PROBLEM - 3] + "..."
