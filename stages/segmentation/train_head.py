"""Stages `train_head@HEAD-SEED` and `train_backbone@BACKBONE-HEAD-SEED`: train one segmentation head on cached tokens.

The first uses the tokens of the profile's own backbone, the second those of a backbone that is compared with it.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from stages.core.atomic import atomic_write
from stages.core.bootstrap import confidence_interval
from stages.core.live import OFF, Recorder, record_live
from stages.core.runs import Run, package_versions, record_path, run_key, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import InputError, stage
from stages.core.weights_file import save_weights
from stages.data import manifest as manifests
from stages.features.tokens import FeatureTable
from stages.models.compute import get_device
from stages.params.experiment import Experiment, load_experiment
from stages.params.segmentation import Segmentation
from stages.segmentation import BACKBONE_FEATURES, BACKBONES, BOOTSTRAP, FEATURES, PREDICTIONS, backbone_run_name
from stages.segmentation.cost import read_cost
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.evaluation import Validation, predict
from stages.segmentation.heads import build_head, check_heads, resolve_options
from stages.segmentation.heads.base import SegmentationHead
from stages.segmentation.iou import mean_iou_draws
from stages.segmentation.live_head import LiveHead, name_classes
from stages.segmentation.training import DivergedError, train_head

TASK = "segmentation"
WEIGHTS = Path("data/models/segmentation")


def output_paths(key: str) -> tuple[Path, Path]:
    """Return the paths of a run's weights and predictions."""
    return WEIGHTS / f"{key}.safetensors", PREDICTIONS / f"{key}.parquet"


def write_head(path: Path, head: nn.Module, config: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Write the weights of `build_head(**config)`, with `config` and the class names as metadata `head`."""
    save_weights(path, head.state_dict(), head={"config": config, "classes": classes})


def write_predictions(path: Path, head: nn.Module, images: ValImages) -> None:
    """Write the predicted masks: `image_id`, `height`, `width`, `mask` (uint8 bytes in row-major order)."""
    schema = pa.schema(
        [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("mask", pa.binary())]
    )
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch, predicted in predict(head, images):
            count, height, width = predicted.shape
            masks = [mask.tobytes() for mask in predicted]
            columns = [batch.image_ids, [height] * count, [width] * count, masks]
            writer.write_table(pa.table(columns, schema=schema))


@dataclass(frozen=True)
class Features:
    """The tables that a head is trained on: of the profile's own backbone, or of `backbones.NAME`."""

    backbone: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the tables `train` and `val`."""
        return BACKBONE_FEATURES / self.backbone if self.backbone else FEATURES

    @property
    def task(self) -> str:
        """The task of runs on these tables."""
        return BACKBONES if self.backbone else TASK

    def run_name(self, head: str) -> str:
        """The name of a head's runs."""
        return backbone_run_name(self.backbone, head) if self.backbone else head

    def stage_name(self, head: str, seed: int) -> str:
        """The name of the stage in `dvc.yaml`."""
        return f"train_{'backbone' if self.backbone else 'head'}@{self.run_name(head)}-{seed}"


OWN = Features()


def run_head(experiment: Experiment, name: str, seed: int, recorder: Recorder = OFF, features: Features = OWN) -> Run:
    """Train the head `segmentation.heads.NAME` with one of the seeds; write its weights, predictions and record."""
    task = experiment.segmentation
    if name not in task.heads:
        raise InputError(f"unknown head '{name}'; segmentation.heads has: {', '.join(task.heads)}")
    check_heads(task.heads)
    manifest = manifests.read_manifest()
    expect = {"manifest": manifests.manifest_hash()}
    if not features.backbone:
        expect["backbone"] = experiment.active.backbone
    train_table = FeatureTable(features.folder / "train", **expect)
    val_table = FeatureTable(features.folder / "val", **expect)

    kind = task.heads[name].kind
    options = resolve_options(kind, task.heads[name].options, name)
    metadata = train_table.metadata
    classes = len(manifest.classes)
    shape = {"dim": metadata.dim, "classes": classes, "attention_heads": metadata.heads}
    config: dict[str, Any] = {"kind": kind, "options": options, **shape}
    run_name = features.run_name(name)
    run_seed = experiment.seed_for(f"{features.task}/{run_name}", seed)
    torch.manual_seed(run_seed)  # of the initial weights
    head = build_head(**config, name=name).to(get_device())
    check_tables(name, head, task, train_table, val_table)

    masks = {row.image_id: Path(row.mask) for row in manifest.rows if row.mask}
    views = TrainViews(train_table, masks, views=task.views, epochs=task.epochs)
    val = ValImages(val_table, masks)
    params = {
        "profile": experiment.profile,
        "base_seed": experiment.seed,
        "seed": seed,
        **task.model_dump(exclude={"heads", "compare", "seeds"}),
        "kind": kind,
        **options,
    }
    if features.backbone:
        is_random = experiment.backbones[features.backbone].random
        params |= {"backbone": features.backbone, "head": name, "random": is_random}
    run = Run(
        task=features.task,
        name=run_name,
        seed=seed,
        stage=features.stage_name(name, seed),
        params=params,
        metrics={},
        inputs={"source": manifest.source, "train_images": len(manifest.split("train")), **vars(metadata)},
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow"),
    )
    live_run = recorder.open(run)
    live = LiveHead(live_run, manifest.classes, tuple(row for row in manifest.split("val") if row.mask))
    validation = Validation(head, val, classes, live)
    settings = task.model_dump(include={"epochs", "batch_size", "lr", "weight_decay"})
    try:
        history = train_head(head, views, **settings, seed=run_seed, name=run.stage, validate=validation)
    except DivergedError as error:
        raise InputError(f"segmentation.lr = {task.lr:g}: {error}") from error

    weights_path, predictions_path = output_paths(run.key)
    write_head(weights_path, head, config, manifest.classes)
    write_predictions(predictions_path, head, val)
    run = replace(
        run,
        metrics=_metrics(history, validation.matrices, experiment.seed_for(BOOTSTRAP)),
        history=[name_classes(row, manifest.classes) for row in history],
        artifacts={"weights": str(weights_path), "predictions": str(predictions_path)},
        details={
            "absent_classes": absent_classes(history, manifest.classes),
            "backbone": asdict(read_cost(features.folder)),
            "feature_bytes": train_table.token_bytes + val_table.token_bytes,
        },
    )
    write_run(run)
    live_run.finish()
    return run


def check_tables(
    name: str, head: SegmentationHead, task: Segmentation, train_table: FeatureTable, val_table: FeatureTable
) -> None:
    """Raise `InputError` for a wrong number of views, too few images for a batch, or a grid too small for the head."""
    views = len(set(train_table.group_views))
    if views != task.views:
        raise InputError(f"segmentation.views = {task.views}: {train_table.path} holds {views}; run `dvc repro`")
    images = len(train_table) // views
    if task.batch_size > images:
        raise InputError(f"segmentation.batch_size = {task.batch_size}: at most {images}, the training images")
    side = min(*train_table.smallest_grid, *val_table.smallest_grid)
    if head.min_grid > side:
        needed = f"{head.min_grid}x{head.min_grid} patch tokens"
        raise InputError(f"segmentation.heads.{name}: needs {needed}; the smallest grid has a side of {side}")


def absent_classes(history: list[dict], classes: tuple[str, ...]) -> list[str]:
    """Classes in neither truth nor prediction after the last epoch."""
    return [name for name, value in zip(classes, history[-1]["iou"], strict=True) if value is None]


def _metrics(history: list[dict], matrices: np.ndarray, seed: int) -> dict[str, float]:
    last = history[-1]
    best = max(history, key=lambda row: row["miou"])
    low, high = confidence_interval(mean_iou_draws(matrices, seed=seed))
    return {
        "miou": last["miou"],
        "miou_low": low,
        "miou_high": high,
        "best_miou": best["miou"],
        "best_epoch": best["epoch"],
        "train_loss": last["train_loss"],
        "val_images": len(matrices),
    }


def main(name: str, seed: int, features: Features = OWN) -> None:
    key = run_key(features.run_name(name), seed)
    reason = skip_reason(features.folder)
    if reason:
        mark_skipped(reason, *output_paths(key), record_path(features.task, key))
        return
    experiment = load_experiment()
    with record_live(features.stage_name(name, seed), experiment.compute.live) as recorder:
        run = run_head(experiment, name, seed, recorder, features)
    absent = run.details["absent_classes"]
    if absent:
        print(f"{name}: in neither truth nor prediction, left out of mIoU: {', '.join(absent)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="a key of backbones in params.yaml; default: the profile's own backbone")
    parser.add_argument("--head", required=True, help="a key of segmentation.heads in params.yaml")
    parser.add_argument("--seed", required=True, type=int, help="one of segmentation.seeds")
    args = parser.parse_args()
    tables = Features(args.backbone)
    with stage(tables.stage_name(args.head, args.seed)):
        main(args.head, args.seed, tables)
