"""Choose fine-tuning's learning rate and number of epochs without the validation images.

    python -m benchmarks.finetune                          the active profile's settings as they are
    python -m benchmarks.finetune --lr 3e-4 1e-3 --epochs 5 10 --settings base accumulated

Every fifth training image of each label is held out; the rest is trained on, under each setting with each learning rate
and number of epochs. Prints, for each combination, the accuracy on the held-out images, the training loss of the last
two epochs and the seconds. Needs the outputs of the stages `checkpoints` and `data`.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from stages.classification.finetune import Finetuning
from stages.classification.training import steps_per_epoch
from stages.core.live import OFF, LiveRun
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest
from stages.params.experiment import Experiment, load_experiment

FOLDS = 5


def hold_out(manifest: Manifest) -> Manifest:
    """The training images alone, every fifth of each label in the split `val`."""
    counts: dict[int | None, int] = defaultdict(int)
    rows = []
    for row in manifest.split("train"):
        counts[row.label] += 1
        rows.append(replace(row, split="train" if counts[row.label] % FOLDS else "val"))
    return replace(manifest, rows=tuple(rows))


def measure(experiment: Experiment, name: str, manifest: Manifest) -> str:
    """Fine-tune under one setting; return the cells of its row."""
    start = time.perf_counter()
    finetuning = Finetuning(experiment, name, experiment.classification.seeds[0], manifest)
    with tempfile.TemporaryDirectory() as folder:
        finetuning.folder = Path(folder)
        history, result = finetuning.fit(LiveRun(OFF, name))
    setting = finetuning.setting
    steps = setting.epochs * steps_per_epoch(len(finetuning.train), setting)
    losses = " ".join(f"{row['train_loss']:.3f}" for row in history[-2:])
    seconds = time.perf_counter() - start
    return (
        f"{name:<16}{setting.lr:>9g}{setting.epochs:>8}{steps:>7}{result.accuracy:>10.1f}   {losses:<14}{seconds:>6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, nargs="+", help="default: each setting's own")
    parser.add_argument("--epochs", type=int, nargs="+", help="default: each setting's own")
    parser.add_argument("--settings", nargs="+", help="default: all")
    arguments = parser.parse_args()
    experiment = load_experiment()
    manifest = hold_out(manifests.read_manifest(LABELED))
    sizes = " and ".join(f"{len(manifest.split(split))} {split}" for split in ("train", "val"))
    print(f"{sizes} images, all of the split train")
    print(f"{'setting':<16}{'lr':>9}{'epochs':>8}{'steps':>7}{'accuracy':>10}   {'losses':<14}{'seconds':>6}")
    settings = experiment.classification.settings
    for name in arguments.settings or settings:
        for lr in arguments.lr or [settings[name].lr]:
            for epochs in arguments.epochs or [settings[name].epochs]:
                setting = settings[name].model_copy(update={"lr": lr, "epochs": epochs})
                task = experiment.classification.model_copy(update={"settings": {name: setting}})
                print(measure(experiment.model_copy(update={"classification": task}), name, manifest), flush=True)


if __name__ == "__main__":
    main()
