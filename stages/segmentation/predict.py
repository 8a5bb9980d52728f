"""Segment any images: masks, overlays and a table of class areas.

    vitlab predict FILE_OR_FOLDER ... [--head transformer]

Writes into `--out`, for every image, `NAME.png` (class indices as a palette PNG in VOC's colors, of the image's own
size) and `NAME.overlay.png` (the mask over the image, with a legend), and `areas.csv` with the columns
`filename,class,percent`. An image in a folder is named by its path below the folder. By default, the head with the
highest mIoU predicts.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.core.atomic import atomic_write
from stages.core.runs import best_run, run_key
from stages.core.skipped import skip_reason
from stages.core.stage import InputError, stage
from stages.data.images import find_images
from stages.data.manifest import read_user_image
from stages.data.voc import save_mask
from stages.models.checkpoints.vits import load_vit
from stages.params.experiment import load_experiment
from stages.params.segmentation import Segmentation
from stages.segmentation.overlay import plot_overlay
from stages.segmentation.segmenter import Segmenter, load_head
from stages.segmentation.train_head import TASK, output_paths

LONGEST = 512  # pixels


def select_weights(task: Segmentation, head: str | None) -> Path:
    """The weights of the run of `head`, or of all heads if `head` is None, with the highest mIoU.

    Raises `InputError` listing the trained heads. Weights of runs that are no longer in params are ignored.
    """
    names = {run_key(name, seed): name for name in task.heads for seed in task.seeds}
    trained = {key: name for key, name in names.items() if output_paths(key)[0].is_file()}
    if not trained:
        reasons = (skip_reason(output_paths(key)[0]) for key in names)
        raise InputError(next(filter(None, reasons), "no trained head; the stage `train_head` makes them: `dvc repro`"))
    return output_paths(best_run(TASK, "head", trained, head, "miou"))[0]


def output_names(files: dict[str, Path]) -> dict[str, str]:
    """The name of each image's outputs: without its suffix. Raises `InputError` if two would be the same."""
    images: dict[str, str] = {}
    for name in files:
        output = Path(name).with_suffix("").as_posix()
        if images.setdefault(output, name) != name:
            raise InputError(f"{images[output]} and {name} would both become {output}.png; pass one of them at a time")
    return {name: output for output, name in images.items()}


def class_areas(mask: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """The share of a mask's pixels in percent, for each class that occurs."""
    counts = np.bincount(mask.flatten(), minlength=len(classes))
    return {name: 100 * int(count) / mask.size for name, count in zip(classes, counts, strict=True) if count}


def main(paths: list[Path], head_name: str | None, longest: int, out: Path) -> None:
    """Segment images and write all files."""
    files = find_images(paths)
    names = output_names(files)
    experiment = load_experiment()
    weights = select_weights(experiment.segmentation, head_name)
    head, classes = load_head(weights)
    segmenter = Segmenter(load_vit("backbone", experiment), head, experiment.compute)
    rows = []
    for name, path in tqdm(files.items(), "predict", unit="image"):
        image = read_user_image(path)
        try:
            mask = segmenter.predict_image(image, longest)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        with atomic_write(out / f"{names[name]}.png") as temporary:
            save_mask(mask, temporary)
        areas = class_areas(mask, classes)
        plot_overlay(out / f"{names[name]}.overlay.png", image, mask, classes, areas)
        rows += [(name, class_name, f"{percent:.2f}") for class_name, percent in areas.items()]
    with atomic_write(out / "areas.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["filename", "class", "percent"])
        writer.writerows(rows)
    print(f"{out}: {len(files)} image{'s' if len(files) > 1 else ''}, by {weights}")


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of images")
    parser.add_argument("--head", help="a key of segmentation.heads (default: the one with the highest mIoU)")
    parser.add_argument(
        "--longest", type=int, default=LONGEST, help=f"shrink larger images to this side (default: {LONGEST} pixels)"
    )
    parser.add_argument("--out", type=Path, default=Path("masks"), help="default: masks")
    args = parser.parse_args(arguments)
    with stage("predict", record=False):
        main(args.images, args.head, args.longest, args.out)


if __name__ == "__main__":
    run_command()
