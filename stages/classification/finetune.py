"""Stage `finetune@NAME-SEED`: fine-tune a pretrained ViT with a new classification layer, under one setting.

A killed run resumes from its last finished epoch and gives the same numbers (on a GPU, up to rounding). Several
processes share the training under `torchrun` (docs/distributed.md).
"""

import argparse
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from stages.classification import PREDICTIONS, WEIGHTS, classifier
from stages.classification.pixels import ImageViews
from stages.classification.training import EvalResult, evaluate, images_per_epoch, steps_per_epoch, train_epoch
from stages.core import processes, train_state
from stages.core.atomic import atomic_write, remove_folders
from stages.core.live import OFF, LiveRun, Recorder, record_live
from stages.core.messages import join_names
from stages.core.runs import Run, package_versions, record_path, run_key, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, first_line
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import MixedPrecision, prepare_model
from stages.models.weights import check_weights, read_weights
from stages.params.classification import FineTuning
from stages.params.experiment import Experiment, load_experiment

TASK = "classification"
RESUME = Path("data/resume/finetune")


class Finetuning:
    """A training of `classification.settings.NAME`, with one of the seeds: model, data and hyperparameters.

    `inputs` are those that the run record names. `folder` contains the training state and the best weights so far.
    """

    def __init__(self, experiment: Experiment, name: str, seed: int, manifest: Manifest):
        params = experiment.active.classifier
        self.name = name
        self.setting = experiment.classification.settings[name].resolved(params)
        self.stage = stage_name(name, seed)
        self.seed = experiment.seed_for(f"{TASK}/{name}", seed)
        self.compute = experiment.compute
        if params.float64:
            self.compute = self.compute.model_copy(update={"precision": "float32"})  # no autocast
        self.folder = RESUME / run_key(name, seed)
        self.train = manifest.split("train")
        self.val = ImageViews(manifest.split("val"), self.setting.size)
        backbone = load_pretrained(experiment, name, self.setting)
        self.inputs = {
            "source": manifest.source,
            "train_images": len(self.train),
            "manifest": manifests.manifest_hash(LABELED),
            "backbone": params.backbone,
            "weights": vit.weights_hash(backbone),
            "precision": "float64" if params.float64 else self.compute.precision,
        }
        torch.manual_seed(self.seed)  # of the new layer's weights, and of dropout if any
        self.model = classifier.build(backbone, params.backbone, manifest.labels, self.setting.size)
        if params.float64:
            self.model.double()
        prepare_model(self.model, self.compute)

    def fit(self, live: LiveRun) -> tuple[list[dict], EvalResult]:
        """Train, starting from the saved state of a killed run if any; save the state after every epoch.

        A run resumes only one with equal params and inputs. Returns the history, one row per epoch, and the evaluation
        of the last epoch's weights. Raises `InputError` if the loss is not finite.
        """
        setting = self.setting
        resume_key = setting.model_dump() | self.inputs | {"seed": self.seed, "compile": self.compute.compile}
        state_path = self.folder / "state.pt"
        mixed = MixedPrecision(self.compute)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=setting.lr, fused=True)
        optimizers: list[torch.optim.Optimizer | torch.amp.GradScaler] = [optimizer, mixed.scaler]
        if processes.is_main():
            self._check_best_weights(state_path)
        state = train_state.load_state(state_path, resume_key, self.model, optimizers)
        for row in state.curve:  # the earlier epochs of a resumed run
            live.epoch(row)
        result = None
        images = images_per_epoch(len(self.train), setting)
        with tqdm(
            total=setting.epochs * images,
            initial=state.step * images,
            unit="image",
            mininterval=1,
            disable=not processes.is_main(),
        ) as bar:
            bar.set_description(self.stage)
            for epoch in range(state.step, setting.epochs):
                views, order = self._draw_epoch(epoch)
                loss = train_epoch(self.model, optimizer, views, order, setting, mixed, bar)
                result = evaluate(self.model, self.val, self.compute)
                if not (math.isfinite(loss) and math.isfinite(result.loss)):
                    param = f"classification.settings.{self.name}.lr = {setting.lr:g}"
                    raise InputError(
                        f"{param}: training diverged in epoch {epoch + 1} (loss {loss}); choose a smaller learning rate"
                    )
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{result.accuracy:.1f}")
                is_best = result.accuracy > max((row["accuracy"] for row in state.curve), default=-1.0)
                if is_best and processes.is_main():
                    # Before the state: a run killed in between repeats this epoch and writes the same weights again.
                    classifier.save(self.folder / "best.safetensors", self.model)
                row = {"epoch": epoch + 1, "train_loss": loss, "val_loss": result.loss, "accuracy": result.accuracy}
                state = train_state.TrainState(epoch + 1, 0.0, [*state.curve, row])
                train_state.save_state(state_path, resume_key, self.model, optimizers, state)
                live.epoch(row)
        # No result: the run was killed after its last epoch, so only the evaluation is missing.
        return state.curve, result or evaluate(self.model, self.val, self.compute)

    def _check_best_weights(self, state_path: Path) -> None:
        """Delete a saved state whose best weights are missing or damaged: it could not be finished."""
        if not state_path.is_file():
            return
        try:
            weights = read_weights(self.folder / "best.safetensors")
            check_weights(weights, self.model.backbone.vit.state_dict())
        except (OSError, ValueError) as error:
            print(f"{state_path}: its best weights cannot be read ({first_line(error)}): training starts over")
            state_path.unlink()

    def _draw_epoch(self, epoch: int) -> tuple[ImageViews, torch.Tensor]:
        """The training views of an epoch and their order, from the epoch's own seed: a resumed run draws the same."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        order = order[: images_per_epoch(len(self.train), self.setting)]
        seeds = None
        if self.setting.augment:
            seeds = torch.randint(2**62, (len(self.train),), generator=generator).tolist()
        return ImageViews(self.train, self.setting.size, seeds), order


def check_labeled(manifest: Manifest) -> None:
    """Raise `InputError` if some images have no label, or if all images have the same label."""
    unlabeled = [row.image_id for row in manifest.rows if row.label is None]
    labels_file = f"{manifest.source}/labels.csv"
    if unlabeled:
        count = f"{len(unlabeled)} image{'s have' if len(unlabeled) > 1 else ' has'} no label"
        raise InputError(f"{labels_file}: {count}: {join_names(unlabeled)}")
    if len(manifest.labels) < 2:
        raise InputError(f"{labels_file}: all images have the label '{manifest.labels[0]}'; at least 2 are needed")


def untrained_labels(manifest: Manifest) -> list[str]:
    """Labels of validation images that no training image has, so that no prediction can be right."""
    train = {row.label for row in manifest.split("train")}
    val = {row.label for row in manifest.split("val")}
    return [label for index, label in enumerate(manifest.labels) if index in val - train]


def write_predictions(path: Path, manifest: Manifest, result: EvalResult) -> None:
    """Write one row per validation image: `image_id`, `label`, `predicted`, and the probabilities of all labels."""
    columns = {
        "image_id": [row.image_id for row in manifest.split("val")],
        "label": [manifest.labels[index] for index in result.truth.tolist()],
        "predicted": [manifest.labels[index] for index in result.predicted.tolist()],
        "probabilities": pa.array(result.probabilities.tolist(), pa.list_(pa.float32())),
    }
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def compute_metrics(history: list[dict], result: EvalResult) -> dict[str, float]:
    """Metrics of the last epoch and of the best one; accuracies in percent.

    The accuracy's 95 % interval is Wilson's (1927), for a proportion of images.
    """
    last = history[-1]
    best = max(history, key=lambda row: row["accuracy"])
    images = len(result.truth)
    correct = int((result.predicted == result.truth).sum())
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": result.accuracy,
        "accuracy_low": 100 * interval.low,
        "accuracy_high": 100 * interval.high,
        "best_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "train_loss": last["train_loss"],
        "val_loss": last["val_loss"],
        "images": images,
    }


def compute_details(result: EvalResult, manifest: Manifest) -> dict[str, Any]:
    """Accuracy by label in percent, null without images; the confusion matrix; labels without training images."""
    labels = manifest.labels
    confusion = confusion_matrix(result.truth, result.predicted, labels=range(len(labels)))
    class_accuracy = {}
    for label, row, hits in zip(labels, confusion.tolist(), confusion.diagonal().tolist(), strict=True):
        class_accuracy[label] = 100 * hits / sum(row) if sum(row) else None
    return {
        "class_accuracy": class_accuracy,
        "confusion": confusion.tolist(),  # rows: true labels, columns: predicted labels
        "untrained_labels": untrained_labels(manifest),
    }


def load_pretrained(experiment: Experiment, name: str, setting: FineTuning) -> vit.Backbone:
    """Load the profile's ViT.

    Raises `InputError` if it is missing, or if the setting's image size is not a multiple of its patch size.
    """
    backbone = load_vit("classifier", experiment)
    for patch in backbone.patch:
        if setting.size % patch:
            nearest = max(patch, setting.size // patch * patch)
            allowed = f"must be a multiple of the patch size {patch}, such as {nearest}"
            raise InputError(f"classification.settings.{name}.size = {setting.size}: {allowed}")
    return backbone


def finetune(experiment: Experiment, name: str, seed: int, manifest: Manifest, recorder: Recorder = OFF) -> Run:
    """Fine-tune under `classification.settings.NAME`; write weights, predictions and the run record.

    Of several processes, the main one writes.
    """
    finetuning = Finetuning(experiment, name, seed, manifest)
    setting = finetuning.setting
    run = Run(
        task=TASK,
        name=name,
        seed=seed,
        stage=finetuning.stage,
        params={"profile": experiment.profile, "base_seed": experiment.seed, "seed": seed, **setting.model_dump()},
        metrics={},
        inputs=finetuning.inputs,
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy"),
    )
    live_run = recorder.open(run)
    history, result = finetuning.fit(live_run)
    weights, predictions = output_paths(run.key)
    run = replace(
        run,
        metrics={
            **compute_metrics(history, result),
            "steps": setting.epochs * steps_per_epoch(len(finetuning.train), setting),
        },
        history=history,
        artifacts={"weights": str(weights / "last.safetensors"), "predictions": str(predictions)},
        details=compute_details(result, manifest),
    )
    if processes.is_main():
        classifier.save(weights / "last.safetensors", finetuning.model)
        with atomic_write(weights / "best.safetensors") as temporary:
            shutil.copy(finetuning.folder / "best.safetensors", temporary)
        write_predictions(predictions, manifest, result)
        write_run(run)
    live_run.finish()
    return run


def output_paths(key: str) -> tuple[Path, Path]:
    """Return a run's folder of weights and the path of its predictions."""
    return WEIGHTS / key, PREDICTIONS / f"{key}.parquet"


def stage_name(name: str, seed: int) -> str:
    """The name of the stage in `dvc.yaml`."""
    return f"finetune@{name}-{seed}"


def remove_state(key: str) -> None:
    """Remove the training state of a finished run."""
    # State first: a state without its best weights could not be resumed.
    (RESUME / key / "state.pt").unlink(missing_ok=True)
    remove_folders(RESUME / key)


def main(name: str, seed: int) -> None:
    experiment = load_experiment()
    key = run_key(name, seed)
    manifest = manifests.read_manifest(LABELED)
    if name not in experiment.classification.settings:
        names = ", ".join(experiment.classification.settings)
        raise InputError(f"unknown setting '{name}'; classification.settings has: {names}")
    if not manifest.labels:
        reason = f"{manifest.source} has no labels (labels.csv): no classification"
        if processes.is_main():
            mark_skipped(reason, *output_paths(key), record_path(TASK, key))
        return
    check_labeled(manifest)
    with record_live(stage_name(name, seed), experiment.compute.live and processes.is_main()) as recorder:
        finetune(experiment, name, seed, manifest, recorder)
    if processes.is_main():
        remove_state(key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", required=True, help="a key of classification.settings in params.yaml")
    parser.add_argument("--seed", required=True, type=int, help="one of classification.seeds")
    args = parser.parse_args()
    with processes.training_stage(stage_name(args.setting, args.seed)):
        main(args.setting, args.seed)
