"""Which validation images are shown."""

from difflib import get_close_matches

from stages.core.stage import InputError
from stages.data.manifest import Row, evenly_spaced


def select_examples(rows: tuple[Row, ...], asked: int | list[str], key: str) -> tuple[Row, ...]:
    """As many as `asked`, spread over the split, or those of the ids `asked`, in their order.

    Raises `InputError` naming `key` for an id that no row has.
    """
    if isinstance(asked, int):
        return evenly_spaced(rows, asked)
    by_id = {row.image_id: row for row in rows}
    for image_id in asked:
        if image_id not in by_id:
            near = ", ".join(get_close_matches(image_id, by_id, n=3, cutoff=0))
            raise InputError(f"{key}: no validation image '{image_id}'; there are {near} and others")
    return tuple(by_id[image_id] for image_id in dict.fromkeys(asked))
