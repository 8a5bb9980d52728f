"""Classify any images; write a CSV file with the columns `filename,label`.

    vitlab classify FILE_OR_FOLDER ...

An image in a folder is named by its path below the folder. By default, the setting with the highest validation
accuracy predicts, with the weights of its best epoch.
"""

import argparse
import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from stages.classification import WEIGHTS, classifier
from stages.classification.classifier import Classifier
from stages.classification.finetune import TASK
from stages.classification.pixels import plain_view
from stages.classification.training import EVAL_BATCH_SIZE
from stages.core.atomic import atomic_write
from stages.core.runs import best_run, run_key
from stages.core.skipped import skip_reason
from stages.core.stage import InputError, stage
from stages.core.workers import build_loader
from stages.data.dataset import MappedDataset
from stages.data.images import find_images, read_image
from stages.data.manifest import IMAGE_ERRORS, Problems, image_problem
from stages.models.compute import get_device, mixed_precision
from stages.params.classification import Classification
from stages.params.compute import Compute
from stages.params.experiment import load_experiment

METRICS = {"best": "best_accuracy", "last": "accuracy"}  # which metric ranks the settings, by epoch


def load_pixels(path: Path, size: int) -> Tensor | str:
    """A file's plain view, or an error message if the file is not a readable image."""
    try:
        return plain_view(read_image(path), size)
    except IMAGE_ERRORS as error:
        return image_problem(error)


def select_weights(task: Classification, setting: str | None, epoch: str) -> Path:
    """The weights file of the most accurate run of `setting`, or of all settings if `setting` is None.

    Raises `InputError` listing the trained settings. Weights of runs that are no longer in params are ignored.
    """
    keys = {run_key(name, seed): name for name in task.settings for seed in task.seeds}
    trained = {key: name for key, name in keys.items() if (WEIGHTS / key / f"{epoch}.safetensors").is_file()}
    if not trained:
        reasons = [skip_reason(WEIGHTS / key) for key in keys]
        raise InputError(next(filter(None, reasons), f"no classifier in {WEIGHTS}; run `dvc repro` first"))
    best = best_run(TASK, "setting", trained, setting, METRICS[epoch])
    return WEIGHTS / best / f"{epoch}.safetensors"


@torch.inference_mode()
def predict(model: Classifier, files: list[Path], compute: Compute) -> list[str]:
    """The most probable label of every file; raises `InputError` listing all files that cannot be read."""
    device = next(model.parameters()).device
    labels = [""] * len(files)
    problems = Problems()
    views = MappedDataset(files, partial(load_pixels, size=model.size))
    # `collate_fn=list`: a batch may contain error messages, which cannot be stacked.
    loader = build_loader(views, compute.workers, batch_size=EVAL_BATCH_SIZE, collate_fn=list)
    with tqdm(total=len(files), desc="predict", unit="image", mininterval=1) as bar:
        for batch in loader:
            readable = {}
            for index, pixels in batch:
                if isinstance(pixels, str):
                    problems.add(files[index], pixels)
                else:
                    readable[index] = pixels
            if readable:
                with mixed_precision(compute):
                    predicted = model(torch.stack(list(readable.values())).to(device)).argmax(1).tolist()
                for index, label in zip(readable, predicted, strict=True):
                    labels[index] = model.labels[label]
            bar.update(len(batch))
    problems.raise_if_any("predict")
    return labels


def main(paths: list[Path], setting: str | None, epoch: str, out: Path) -> None:
    """Classify images and write the table."""
    files = find_images(paths)
    experiment = load_experiment()
    weights = select_weights(experiment.classification, setting, epoch)
    model = classifier.load(weights).to(get_device())
    labels = predict(model, list(files.values()), experiment.compute)
    with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["filename", "label"])
        writer.writerows(zip(files, labels, strict=True))
    print(f"{out}: {len(files)} image{'s' if len(files) > 1 else ''}, by {weights}")


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of images")
    parser.add_argument("--setting", help="a key of classification.settings (default: the most accurate setting)")
    parser.add_argument("--epoch", choices=("best", "last"), default="best", help="whose weights (default: best)")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    args = parser.parse_args(arguments)
    with stage("predict", record=False):
        main(args.images, args.setting, args.epoch, args.out)


if __name__ == "__main__":
    run_command()
