"""What classifiers see in any images: a CSV file with the columns `filename,label`.

    python -m stages.classification.predict FILE_OR_FOLDER ...

Images in a folder are named by their path below it. The classifier is the one of the best setting, at its best epoch.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.classification import WEIGHTS, classifier
from stages.classification.classifier import Classifier
from stages.classification.finetune import TASK
from stages.classification.pixels import plain_view
from stages.classification.training import EVAL_BATCH
from stages.core.atomic import atomic_write
from stages.core.runs import read_run
from stages.core.skipped import skip_reason
from stages.core.stage import InputError, stage
from stages.data.images import find_images, read_image
from stages.data.manifest import IMAGE_ERRORS, Problems
from stages.models.compute import get_device, mixed_precision
from stages.params.compute import Compute
from stages.params.experiment import load_experiment


class Readable(Dataset):
    """`(index, pixels)` of every file that can be read, `(index, reason)` of the others."""

    def __init__(self, files: list[Path], size: int):
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, plain_view(read_image(self.files[index]), self.size)
        except IMAGE_ERRORS as fault:
            return index, str(fault)


def chosen_weights(settings: Iterable[str], setting: str | None, epoch: str) -> Path:
    """Where the weights of `setting` lie, of the most accurate one among `settings` without a name.

    Raises `InputError` listing the settings there are. What others have left behind is not looked at.
    """
    asked = {name: WEIGHTS / name / f"{epoch}.safetensors" for name in settings}
    there = {name: path for name, path in asked.items() if path.is_file()}
    if not there:
        reasons = [skip_reason(WEIGHTS / name) for name in asked]
        raise InputError(next(filter(None, reasons), "no classifier is there; run `dvc repro` first"))
    if setting is None:
        key = {"best": "best_accuracy", "last": "accuracy"}[epoch]
        setting = max(there, key=lambda name: read_run(TASK, name).metrics[key])
    if setting not in there:
        raise InputError(f"no setting '{setting}'; there are: {', '.join(there)}")
    return there[setting]


@torch.inference_mode()
def predict(model: Classifier, files: list[Path], compute: Compute) -> list[str]:
    """The likeliest label of every file; raises `InputError` listing all that cannot be read."""
    labels, faults, on = [""] * len(files), Problems(), next(model.parameters()).device
    loader = DataLoader(Readable(files, model.size), EVAL_BATCH, num_workers=compute.workers, collate_fn=list)
    with tqdm(total=len(files), desc="predict", unit="image", mininterval=1) as bar:
        for batch in loader:
            for index, reason in batch:
                if isinstance(reason, str):
                    faults.add(files[index], reason)
            some = [(index, pixels) for index, pixels in batch if not isinstance(pixels, str)]
            if some:
                with mixed_precision(compute):
                    likeliest = model(torch.stack([pixels for _, pixels in some]).to(on)).argmax(1).tolist()
                for (index, _), label in zip(some, likeliest, strict=True):
                    labels[index] = model.labels[label]
            bar.update(len(batch))
    faults.raise_if_any("predict")
    return labels


def main(asked: list[Path], setting: str | None, epoch: str, out: Path) -> None:
    """Classify the images and write the table."""
    files = find_images(asked)
    experiment = load_experiment()
    path = chosen_weights(experiment.classification.settings, setting, epoch)
    model = classifier.load(path).to(get_device())
    labels = predict(model, list(files.values()), experiment.compute)
    with atomic_write(out) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["filename", "label"])
        writer.writerows(zip(files, labels, strict=True))
    print(f"{out}: {len(files)} image{'s' if len(files) > 1 else ''}, by {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--setting", help="a key of classification.settings; the most accurate one if not given")
    parser.add_argument("--epoch", choices=("best", "last"), default="best", help="whose weights (best)")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="predictions.csv")
    asked = parser.parse_args()
    with stage("predict"):
        main(asked.images, asked.setting, asked.epoch, asked.out)
