"""Stage `train_head@NAME`: train one head on cached features, after the report's protocol."""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn

from stages.core.atomic import atomic_write
from stages.core.bootstrap import confidence_interval
from stages.core.runs import Run, package_versions, record_path, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.features.tokens import FeatureTable
from stages.models.compute import get_device
from stages.params.experiment import Experiment, load_experiment
from stages.params.segmentation import Head, Segmentation
from stages.segmentation import BOOTSTRAP, FEATURES, PREDICTIONS
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.heads import build_head
from stages.segmentation.iou import mean_iou_draws
from stages.segmentation.training import predict, train

TASK = "segmentation"
WEIGHTS = Path("data/models/segmentation")


def outputs_of(name: str) -> tuple[Path, Path]:
    """Where a head's weights and predictions go."""
    return WEIGHTS / f"{name}.safetensors", PREDICTIONS / f"{name}.parquet"


def write_weights(path: Path, head: nn.Module, config: dict, classes: tuple[str, ...]) -> None:
    """The head's weights, with what `build_head` needs to make it anew and the classes' names.

    Both stand under one key of the metadata: safetensors writes several in an order that changes from run to run.
    """
    weights = {key: weight.cpu().contiguous() for key, weight in head.state_dict().items()}
    with atomic_write(path) as beside:
        save_file(weights, beside, metadata={"head": json.dumps({"config": config, "classes": classes})})


def write_predictions(path: Path, head: nn.Module, images: ValImages) -> None:
    """All validation masks as predicted: `image_id`, `height`, `width`, `mask` (uint8 bytes, row by row)."""
    fields = [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("mask", pa.binary())]
    schema = pa.schema(fields)
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for alike, predicted in predict(head, images):
            sizes = [len(alike.image_ids) * [side] for side in predicted.shape[1:]]
            masks = [mask.numpy().tobytes() for mask in predicted]
            writer.write_table(pa.table([alike.image_ids, *sizes, masks], schema=schema))


def run_head(experiment: Experiment, name: str) -> Run:
    """Train the head `segmentation.heads.NAME` and write its weights, predictions and record."""
    task, manifest = experiment.segmentation, manifests.read_manifest()
    if name not in task.heads:
        raise InputError(f"unknown head '{name}'; segmentation.heads has: {', '.join(task.heads)}")
    asked, classes = task.heads[name], len(manifest.classes)
    expected = {"backbone": experiment.active.backbone, "manifest": manifests.manifest_hash()}
    train_table, val_table = (FeatureTable(FEATURES / split, **expected) for split in ("train", "val"))
    _check_fits(name, asked, task, train_table, val_table)
    made_from, seed = train_table.metadata, experiment.seed_for(f"segmentation/{name}")
    config = {"dim": made_from.dim, "classes": classes, "heads": made_from.heads, **asked.model_dump()}
    torch.manual_seed(seed)
    head = build_head(**config).to(get_device())
    masks = {row.image_id: Path(row.mask) for row in manifest.rows}
    views, val = TrainViews(train_table, masks, views=task.views, epochs=task.epochs), ValImages(val_table, masks)
    history, matrices = train(head, views, val, classes, task, seed, f"train_head@{name}")
    weights, predictions = outputs_of(name)
    write_weights(weights, head, config, manifest.classes)
    write_predictions(predictions, head, val)
    asked_for = {**task.model_dump(exclude={"heads"}), **asked.model_dump(exclude_none=True)}
    run = Run(
        task=TASK,
        name=name,
        stage=f"train_head@{name}",
        params={"profile": experiment.profile, "seed": experiment.seed, **asked_for},
        metrics=_metrics(history, matrices, manifest.classes, experiment.seed_for(BOOTSTRAP)),
        history=[{**row, "iou": dict(zip(manifest.classes, row["iou"], strict=True))} for row in history],
        inputs={"source": manifest.source, "train_images": len(manifest.split("train")), **vars(made_from)},
        artifacts={"weights": str(weights), "predictions": str(predictions)},
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow"),
    )
    write_run(run)
    return run


def _check_fits(name: str, asked: Head, task: Segmentation, train_table: FeatureTable, val_table: FeatureTable) -> None:
    """Raise `InputError` for other views than asked for, a batch that no epoch fills, a kernel larger than a grid."""
    views = len(set(train_table.group_views))
    if views != task.views:
        raise InputError(f"segmentation.views = {task.views}: {train_table.path} holds {views}; run `dvc repro`")
    images = len(train_table) // views
    if task.batch_size > images:
        raise InputError(f"segmentation.batch_size = {task.batch_size}: at most {images}, the training images")
    side = min(*train_table.smallest_grid, *val_table.smallest_grid)
    kernel = asked.options.get("kernel")
    if isinstance(kernel, int) and kernel > side:
        most = f"at most {side}, the side of the smallest grid of patch tokens"
        raise InputError(f"segmentation.heads.{name}.kernel = {kernel}: {most}")


def _metrics(history: list[dict], matrices: np.ndarray, classes: tuple[str, ...], seed: int) -> dict:
    last, best = history[-1], max(history, key=lambda row: row["miou"])
    low, high = confidence_interval(mean_iou_draws(matrices, seed=seed))
    return {
        "miou": last["miou"],
        "miou_low": low,
        "miou_high": high,
        "best_miou": best["miou"],
        "best_epoch": best["epoch"],
        "train_loss": last["train_loss"],
        "val_images": len(matrices),
        "absent_classes": [name for name, value in zip(classes, last["iou"], strict=True) if value is None],
    }


def main(name: str) -> None:
    reason = skip_reason(FEATURES)
    if reason:
        mark_skipped(reason, *outputs_of(name), record_path(TASK, name))
        return
    run = run_head(load_experiment(), name)
    if run.metrics["absent_classes"]:
        print(f"{name}: in neither truth nor prediction, left out of mIoU: {', '.join(run.metrics['absent_classes'])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", help="a key of segmentation.heads in params.yaml")
    head_name = parser.parse_args().head
    with stage(f"train_head@{head_name}"):
        main(head_name)
