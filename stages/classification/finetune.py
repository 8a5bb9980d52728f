"""Stage `finetune@NAME`: a pretrained ViT with a new classification layer, fine-tuned under one setting.

A killed run goes on from its last finished epoch and ends in the same numbers.
"""

import argparse
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from stages import tracking
from stages.absence import declare_absent
from stages.backbones import recipe, vit
from stages.classification import PREDICTIONS, WEIGHTS, classifier, pixels, training
from stages.classification.classifier import Classifier
from stages.classification.pixels import Views
from stages.classification.training import Judged, judge, steps_of, train_epoch
from stages.data import manifest as manifests
from stages.data.manifest import LABELLED, Manifest, Row
from stages.params.classification import Setting
from stages.params.experiment import Experiment, load_experiment
from stages.runs import Run, package_versions, record_path, write_run
from stages.stage import InputError, stage
from stages.writing import replacing

TASK = "classification"
RESUME = Path("data/resume/finetune")
NAMED = 12  # images that are named in a fault


@dataclass
class Finetuning:
    """One setting's run: what is trained, on what, and where it keeps what a resumed run needs."""

    name: str
    setting: Setting
    seed: int
    model: Classifier
    train: tuple[Row, ...]
    val: Views
    folder: Path

    def follow(self, asked: dict) -> tuple[list[dict], Judged]:
        """Train from where a run that was `asked` the same left off, and keep every epoch.

        Returns the history, and what the last epoch's classifier makes of the validation images.
        """
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.setting.lr, fused=True)
        progress = recipe.resume(self.folder / "state.pt", asked, self.model, [optimizer])
        images, setting, judged = len(self.train), self.setting, None
        with tqdm(total=setting.epochs * images, initial=progress.step * images, unit="image", mininterval=1) as bar:
            bar.set_description(f"finetune@{self.name}")
            for epoch in range(progress.step, setting.epochs):
                views, order = self._epoch(epoch)
                loss = train_epoch(self.model, optimizer, views, order, setting.batch, setting.accumulate, bar)
                judged = judge(self.model, self.val)
                self._check_finite(loss, judged, epoch)
                row = {"epoch": epoch + 1, "train_loss": loss, "val_loss": judged.loss, "accuracy": judged.accuracy}
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{judged.accuracy:.1f}")
                if judged.accuracy > max((one["accuracy"] for one in progress.curve), default=-1.0):
                    classifier.save(self.folder / "best.safetensors", self.model)
                progress = recipe.Progress(epoch + 1, 0.0, [*progress.curve, row])
                recipe.keep(self.folder / "state.pt", asked, self.model, [optimizer], progress)
        return progress.curve, judged or judge(self.model, self.val)

    def _epoch(self, epoch: int) -> tuple[Views, torch.Tensor]:
        """An epoch's views and their order, drawn from the epoch's own seeds: a resumed run draws the same."""
        files, labels = files_and_labels(self.train)
        shuffle = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(files), generator=shuffle)
        seeds = torch.randint(2**62, (len(files),), generator=shuffle).tolist() if self.setting.augment else None
        return Views(files, labels, self.setting.size, seeds), order

    def _check_finite(self, loss: float, judged: Judged, epoch: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(judged.loss)):
            lr = f"classification.settings.{self.name}.lr = {self.setting.lr:g}"
            raise InputError(f"{lr}: training diverged in epoch {epoch + 1} (loss {loss}); choose a smaller one")


def files_and_labels(rows: tuple[Row, ...]) -> tuple[list[Path], list[int]]:
    """What `Views` reads."""
    return [Path(row.image) for row in rows], [row.label for row in rows]


def check_labelled(manifest: Manifest) -> None:
    """Raise `InputError` where some images have labels and others have none, or all have the same."""
    bare = [row.image_id for row in manifest.rows if row.label is None]
    if bare:
        count = f"{len(bare)} image{'s have' if len(bare) > 1 else ' has'} no label"
        raise InputError(f"{manifest.source}/labels.csv: {count}: {', '.join(bare[:NAMED])}")
    if len(manifest.labels) < 2:
        raise InputError(f"{manifest.source}/labels.csv: all images have the label '{manifest.labels[0]}'")
    seen, asked = ({row.label for row in manifest.split(split)} for split in ("train", "val"))
    if asked - seen:
        unseen = ", ".join(manifest.labels[index] for index in sorted(asked - seen))
        print(f"labels that no training image has, and no prediction will: {unseen}")


def write_predictions(path: Path, manifest: Manifest, judged: Judged) -> None:
    """A row a validation image: `image_id`, `label`, `predicted`, and every label's probability."""
    columns = {
        "image_id": [row.image_id for row in manifest.split("val")],
        "label": [manifest.labels[index] for index in judged.truth.tolist()],
        "predicted": [manifest.labels[index] for index in judged.predicted.tolist()],
        "probabilities": judged.probabilities.tolist(),
    }
    kinds = pa.schema([*((name, pa.string()) for name in list(columns)[:3]), ("probabilities", pa.list_(pa.float32()))])
    with replacing(path) as beside:
        pq.write_table(pa.table(columns, schema=kinds), beside, compression="zstd")


def metrics_of(history: list[dict], judged: Judged, labels: tuple[str, ...]) -> dict:
    """Of the last epoch, and of the best one; percentages. The interval is Wilson's, of a share of `images`."""
    best, last = max(history, key=lambda row: row["accuracy"]), history[-1]
    right, images = int((judged.predicted == judged.truth).sum()), len(judged.truth)
    between = binomtest(right, images).proportion_ci(0.95, method="wilson")
    counted = confusion_matrix(judged.truth, judged.predicted, labels=range(len(labels)))
    shown = zip(labels, counted.diagonal().tolist(), counted.sum(1).tolist(), strict=True)
    return {
        "accuracy": judged.accuracy,
        "accuracy_low": 100 * between.low,
        "accuracy_high": 100 * between.high,
        "best_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "train_loss": last["train_loss"],
        "val_loss": last["val_loss"],
        "images": images,
        "class_accuracy": {name: 100 * hit / count if count else None for name, hit, count in shown},
        "confusion": counted.tolist(),  # rows: truth
    }


def run_setting(experiment: Experiment, name: str, manifest: Manifest) -> Run:
    """Fine-tune under `classification.settings.NAME`; write weights, predictions and record."""
    chosen = experiment.active.classifier
    setting = experiment.classification.settings[name].resolved(chosen)
    seed = experiment.seed_of(f"{TASK}/{name}")
    torch.manual_seed(seed)
    try:
        model = classifier.start(chosen.backbone, manifest.labels, setting.size)
    except (OSError, ValueError) as fault:
        told = str(fault).strip().splitlines()[0]
        raise InputError(f"{experiment.profile}.classifier.backbone = '{chosen.backbone}': {told}") from fault
    inputs = {
        "source": manifest.source,
        "train_images": len(manifest.split("train")),
        "manifest": manifests.fingerprint(LABELLED),
        "backbone": chosen.backbone,
        "weights": vit.weights_hash(vit.load(chosen.backbone)),
    }
    val = Views(*files_and_labels(manifest.split("val")), setting.size)
    one = Finetuning(name, setting, seed, model.to(classifier.device()), manifest.split("train"), val, RESUME / name)
    asked = recipe.asked_for(setting, sys.modules[__name__], classifier, pixels, training) | inputs | {"seed": seed}
    history, judged = one.follow(asked)
    weights, predictions = WEIGHTS / name, PREDICTIONS / f"{name}.parquet"
    classifier.save(weights / "last.safetensors", model)
    with replacing(weights / "best.safetensors") as beside:
        shutil.copy(one.folder / "best.safetensors", beside)
    write_predictions(predictions, manifest, judged)
    run = Run(
        task=TASK,
        name=name,
        stage=f"finetune@{name}",
        params={"profile": experiment.profile, "seed": experiment.seed, **setting.model_dump()},
        metrics={
            **metrics_of(history, judged, manifest.labels),
            "steps": setting.epochs * steps_of(len(one.train), setting.batch, setting.accumulate),
        },
        history=history,
        inputs=inputs,
        artefacts={"weights": str(weights / "last.safetensors"), "predictions": str(predictions)},
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn"),
    )
    write_run(run)
    shutil.rmtree(one.folder)
    return run


def main(name: str) -> None:
    torch.set_flush_denormal(True)
    start, experiment, manifest = time.perf_counter(), load_experiment(), manifests.read(LABELLED)
    if name not in experiment.classification.settings:
        there = ", ".join(experiment.classification.settings)
        raise InputError(f"unknown setting '{name}'; classification.settings has: {there}")
    if not manifest.labels:
        reason = f"{manifest.source} has no labels (labels.csv): no classification"
        declare_absent(reason, WEIGHTS / name, PREDICTIONS / f"{name}.parquet", record_path(TASK, name))
        return
    check_labelled(manifest)
    tracking.register([run_setting(experiment, name, manifest)], seconds=time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", help="a key of classification.settings in params.yaml")
    setting_name = parser.parse_args().setting
    with stage(f"finetune@{setting_name}"):
        main(setting_name)
