"""Select the validation images that pictures show."""

from difflib import get_close_matches

from stages.core.stage import InputError
from stages.data.manifest import Row, evenly_spaced


def select_examples(rows: tuple[Row, ...], examples: int | list[str], param: str) -> tuple[Row, ...]:
    """`examples` rows spread over the split if it is a number, else the rows with these image ids, in their order.

    Raises `InputError` naming `param` for an id that no row has.
    """
    if isinstance(examples, int):
        return evenly_spaced(rows, examples)
    by_id = {row.image_id: row for row in rows}
    for image_id in examples:
        if image_id not in by_id:
            similar = ", ".join(get_close_matches(image_id, by_id, n=3, cutoff=0))
            raise InputError(f"{param}: no validation image '{image_id}'; similar ids: {similar}")
    return tuple(by_id[image_id] for image_id in dict.fromkeys(examples))
