"""Stage `finetune@NAME`: a pretrained ViT with a new classification layer, fine-tuned under one setting.

A killed run goes on from its last finished epoch and ends in the same numbers (on a GPU, as nearly as it can).
"""

import argparse
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from stages.classification import PREDICTIONS, WEIGHTS, classifier
from stages.classification.classifier import Classifier
from stages.classification.pixels import ImageViews
from stages.classification.training import EvalResult, evaluate, steps_per_epoch, train_epoch
from stages.core import train_state
from stages.core.atomic import atomic_write
from stages.core.runs import Run, package_versions, record_path, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest, Row
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import MixedPrecision, prepare_model
from stages.params.classification import Setting
from stages.params.compute import Compute
from stages.params.experiment import Experiment, load_experiment

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
    val: ImageViews
    folder: Path
    compute: Compute

    def follow(self, asked: dict) -> tuple[list[dict], EvalResult]:
        """Train from where a run that was `asked` the same left off, and keep every epoch.

        Returns the history, and what the last epoch's classifier makes of the validation images.
        """
        mixed = MixedPrecision(self.compute)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.setting.lr, fused=True)
        progress = train_state.load_state(self.folder / "state.pt", asked, self.model, [optimizer, mixed.scaler])
        count, setting, judged = len(self.train), self.setting, None
        with tqdm(total=setting.epochs * count, initial=progress.step * count, unit="image", mininterval=1) as bar:
            bar.set_description(f"finetune@{self.name}")
            for epoch in range(progress.step, setting.epochs):
                views, order = self._epoch(epoch)
                sizes = setting.batch_size, setting.accumulate
                loss = train_epoch(self.model, optimizer, views, order, *sizes, mixed, bar)
                judged = evaluate(self.model, self.val, self.compute)
                self._check_finite(loss, judged, epoch)
                row = {"epoch": epoch + 1, "train_loss": loss, "val_loss": judged.loss, "accuracy": judged.accuracy}
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{judged.accuracy:.1f}")
                if judged.accuracy > max((one["accuracy"] for one in progress.curve), default=-1.0):
                    classifier.save(self.folder / "best.safetensors", self.model)
                progress = train_state.TrainState(epoch + 1, 0.0, [*progress.curve, row])
                train_state.save_state(self.folder / "state.pt", asked, self.model, [optimizer, mixed.scaler], progress)
        return progress.curve, judged or evaluate(self.model, self.val, self.compute)

    def _epoch(self, epoch: int) -> tuple[ImageViews, torch.Tensor]:
        """An epoch's views and their order, drawn from the epoch's own seeds: a resumed run draws the same."""
        files, labels = files_and_labels(self.train)
        shuffle = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(files), generator=shuffle)
        seeds = torch.randint(2**62, (len(files),), generator=shuffle).tolist() if self.setting.augment else None
        return ImageViews(files, labels, self.setting.size, seeds), order

    def _check_finite(self, loss: float, judged: EvalResult, epoch: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(judged.loss)):
            lr = f"classification.settings.{self.name}.lr = {self.setting.lr:g}"
            raise InputError(f"{lr}: training diverged in epoch {epoch + 1} (loss {loss}); choose a smaller one")


def files_and_labels(rows: tuple[Row, ...]) -> tuple[list[Path], list[int]]:
    """What `Views` reads."""
    return [Path(row.image) for row in rows], [row.label for row in rows]


def check_labeled(manifest: Manifest) -> None:
    """Raise `InputError` where some images have labels and others have none, or all have the same."""
    bare = [row.image_id for row in manifest.rows if row.label is None]
    if bare:
        count = f"{len(bare)} image{'s have' if len(bare) > 1 else ' has'} no label"
        raise InputError(f"{manifest.source}/labels.csv: {count}: {', '.join(bare[:NAMED])}")
    if len(manifest.labels) < 2:
        raise InputError(f"{manifest.source}/labels.csv: all images have the label '{manifest.labels[0]}'")


def untrained_labels(manifest: Manifest) -> list[str]:
    """Labels of validation images that no training image has, and that no prediction will."""
    seen, asked = ({row.label for row in manifest.split(split)} for split in ("train", "val"))
    return [manifest.labels[index] for index in sorted(asked - seen)]


def write_predictions(path: Path, manifest: Manifest, judged: EvalResult) -> None:
    """A row a validation image: `image_id`, `label`, `predicted`, and every label's probability."""
    columns = {
        "image_id": [row.image_id for row in manifest.split("val")],
        "label": [manifest.labels[index] for index in judged.truth.tolist()],
        "predicted": [manifest.labels[index] for index in judged.predicted.tolist()],
        "probabilities": judged.probabilities.tolist(),
    }
    kinds = pa.schema([*((name, pa.string()) for name in list(columns)[:3]), ("probabilities", pa.list_(pa.float32()))])
    with atomic_write(path) as beside:
        pq.write_table(pa.table(columns, schema=kinds), beside, compression="zstd")


def metrics_of(history: list[dict], judged: EvalResult, labels: tuple[str, ...]) -> dict:
    """Of the last epoch, and of the best one; percentages. The interval is Wilson's, of a share of all images."""
    best, last = max(history, key=lambda row: row["accuracy"]), history[-1]
    right, count = int((judged.predicted == judged.truth).sum()), len(judged.truth)
    between = binomtest(right, count).proportion_ci(0.95, method="wilson")
    counted = confusion_matrix(judged.truth, judged.predicted, labels=range(len(labels)))
    rows = zip(labels, counted.diagonal().tolist(), counted.sum(1).tolist(), strict=True)
    return {
        "accuracy": judged.accuracy,
        "accuracy_low": 100 * between.low,
        "accuracy_high": 100 * between.high,
        "best_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "train_loss": last["train_loss"],
        "val_loss": last["val_loss"],
        "images": count,
        "class_accuracy": {name: 100 * hit / held if held else None for name, hit, held in rows},
        "confusion": counted.tolist(),  # rows: truth
    }


def pretrained(experiment: Experiment, name: str, setting: Setting) -> vit.Backbone:
    """The profile's ViT; raises `InputError` where there is none, or where the setting's size is no whole patches."""
    backbone = load_vit("classifier", experiment)
    for patch in backbone.patch:
        if setting.size % patch:
            near = max(patch, setting.size // patch * patch)
            allowed = f"whole patches of {patch} pixels, such as {near}"
            raise InputError(f"classification.settings.{name}.size = {setting.size}: must be {allowed}")
    return backbone


def finetuning(experiment: Experiment, name: str, manifest: Manifest) -> tuple[Finetuning, dict]:
    """The run of `classification.settings.NAME` before its first epoch, and what it is made from."""
    chosen = experiment.active.classifier
    setting = experiment.classification.settings[name].resolved(chosen)
    backbone, seed = pretrained(experiment, name, setting), experiment.seed_for(f"{TASK}/{name}")
    inputs = {
        "source": manifest.source,
        "train_images": len(manifest.split("train")),
        "manifest": manifests.manifest_hash(LABELED),
        "backbone": chosen.backbone,
        "weights": vit.weights_hash(backbone),
        "precision": experiment.compute.precision,
    }
    torch.manual_seed(seed)
    model = classifier.start(backbone, chosen.backbone, manifest.labels, setting.size)
    val = ImageViews(*files_and_labels(manifest.split("val")), setting.size)
    prepare_model(model, experiment.compute)
    folder = RESUME / name
    return Finetuning(name, setting, seed, model, manifest.split("train"), val, folder, experiment.compute), inputs


def run_setting(experiment: Experiment, name: str, manifest: Manifest) -> Run:
    """Fine-tune under `classification.settings.NAME`; write weights, predictions and record."""
    one, inputs = finetuning(experiment, name, manifest)
    setting = one.setting
    asked = {"seed": one.seed, "compile": experiment.compute.compile}
    history, judged = one.follow(setting.model_dump() | inputs | asked)
    weights, predictions = WEIGHTS / name, PREDICTIONS / f"{name}.parquet"
    classifier.save(weights / "last.safetensors", one.model)
    with atomic_write(weights / "best.safetensors") as beside:
        shutil.copy(one.folder / "best.safetensors", beside)
    write_predictions(predictions, manifest, judged)
    run = Run(
        task=TASK,
        name=name,
        stage=f"finetune@{name}",
        params={"profile": experiment.profile, "seed": experiment.seed, **setting.model_dump()},
        metrics={
            **metrics_of(history, judged, manifest.labels),
            "steps": setting.epochs * steps_per_epoch(len(one.train), setting.batch_size, setting.accumulate),
            "untrained_labels": untrained_labels(manifest),
        },
        history=history,
        inputs=inputs,
        artifacts={"weights": str(weights / "last.safetensors"), "predictions": str(predictions)},
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy"),
    )
    write_run(run)
    return run


def forget(name: str) -> None:
    """Remove what a resumed run would need: first what says that there is one."""
    (RESUME / name / "state.pt").unlink(missing_ok=True)
    shutil.rmtree(RESUME / name, ignore_errors=True)


def main(name: str) -> None:
    experiment, manifest = load_experiment(), manifests.read_manifest(LABELED)
    if name not in experiment.classification.settings:
        there = ", ".join(experiment.classification.settings)
        raise InputError(f"unknown setting '{name}'; classification.settings has: {there}")
    if not manifest.labels:
        reason = f"{manifest.source} has no labels (labels.csv): no classification"
        mark_skipped(reason, WEIGHTS / name, PREDICTIONS / f"{name}.parquet", record_path(TASK, name))
        return
    check_labeled(manifest)
    run_setting(experiment, name, manifest)
    forget(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", help="a key of classification.settings in params.yaml")
    setting_name = parser.parse_args().setting
    with stage(f"finetune@{setting_name}"):
        main(setting_name)
