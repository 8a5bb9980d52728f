"""Select the validation images that pictures show, and name the pictures."""

from difflib import get_close_matches
from pathlib import Path

from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.data.image_ids import file_name_problem
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
            raise InputError(f"{param}: no validation image {quote_value(image_id)}; similar ids: {similar}")
    return tuple(by_id[image_id] for image_id in dict.fromkeys(examples))


def picture_path(folder: Path, name: str) -> Path:
    """`folder`/`name`.png, where `name` is built from an image ID or from a file's path below a folder.

    Raises `InputError` for a name that leads out of `folder`. Sources refuse such IDs as well; this is the last check
    before a file is replaced.
    """
    problem = file_name_problem(name)
    if problem:
        raise InputError(f"no picture of {quote_value(name)} in {folder}: {problem}")
    return folder / f"{name}.png"
