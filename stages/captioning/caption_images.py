"""Caption any images: one line per image, or a CSV file with the columns `image,caption`.

    vitlab caption FILE_OR_FOLDER ... [--cell k50_t07] [--csv captions.csv]

An image in a folder is named by its path below the folder. By default, the first greedy cell of `captioning.cells`
decodes. A cell that samples draws random numbers that depend on the file's name without folder and suffix: the same
image always gets the same caption.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
from tqdm import tqdm

from stages.captioning.image_captioner import ImageCaptioner
from stages.core.atomic import write_text
from stages.core.messages import escape_controls, join_names
from stages.core.stage import InputError, stage
from stages.data.images import find_images
from stages.data.manifest import read_user_image
from stages.params.captioning import Captioning, CaptionModel
from stages.params.experiment import load_experiment


def select_cell(task: Captioning, name: str | None) -> str:
    """`name`, or the first greedy cell if `name` is None. Raises `InputError` listing the cells."""
    names = [cell for cell, params in task.cells.items() if name == cell or (name is None and params.type == "greedy")]
    if not names:
        missing = "no greedy cell" if name is None else f"no cell '{name}'"
        raise InputError(f"captioning.cells has {missing}; choose with --cell from {join_names(list(task.cells))}")
    return names[0]


def caption_file(captioner: ImageCaptioner, path: Path) -> str:
    """The caption of an image file."""
    return captioner.caption(read_user_image(path), image_id=path.stem)


def main(paths: list[Path], cell: str | None, model: CaptionModel | None, out: Path | None) -> None:
    """Caption images; print the captions, or write them to `out`."""
    files = find_images(paths)
    experiment = load_experiment()
    task = experiment.captioning
    name = select_cell(task, cell)
    captioner = ImageCaptioner(experiment, model or task.model, name, task.cells[name])
    if out is None:
        for file_name, path in files.items():
            print(f"{escape_controls(file_name)}: {caption_file(captioner, path)}")
        return
    with tqdm(files.values(), "caption", unit="image") as progress:  # closed before an error is printed
        captions = [caption_file(captioner, path) for path in progress]
    write_text(out, pd.DataFrame({"image": list(files), "caption": captions}).to_csv(index=False))
    count = f"{len(files)} image{'s' if len(files) > 1 else ''}"
    print(f"{out}: {count}, by {captioner.captioner.source}, cell {name}")


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of images")
    parser.add_argument("--cell", help="a key of captioning.cells (default: the first greedy one)")
    parser.add_argument("--model", choices=get_args(CaptionModel), help="default: captioning.model")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the captions to this file")
    args = parser.parse_args(arguments)
    with stage("caption", record=False):
        main(args.images, args.cell, args.model, args.csv)


if __name__ == "__main__":
    run_command()
