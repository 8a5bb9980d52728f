"""Parts of messages that several stages share."""

from collections.abc import Sequence


def join_names(names: Sequence[str], limit: int = 12) -> str:
    """The first `limit` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
