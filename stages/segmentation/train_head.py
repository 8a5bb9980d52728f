"""Stage `train_head@NAME`: train one head on cached features, after the report's protocol."""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stages import tracking
from stages.data import manifest as manifests
from stages.data.images import read_mask
from stages.data.voc import VOID
from stages.features import FeatureTable
from stages.params.experiment import Experiment, Segmentation, load_experiment
from stages.runs import Run, package_versions, write_run
from stages.segmentation import BOOTSTRAP, FEATURES, PREDICTIONS
from stages.segmentation.heads import build_head
from stages.segmentation.iou import confusion, interval, iou, mean_iou_draws
from stages.stage import InputError, stage
from stages.views import cut_mask
from stages.writing import replacing

WEIGHTS = Path("data/models/segmentation")
PIXELS = 2**18  # validation pixels whose logits are held at full size at once


class TrainViews:
    """The training set as epochs see it: tokens and equally cut masks of one view of every image.

    Loads a view when it is asked for, and keeps views only where `epochs` will ask again.
    """

    def __init__(self, table: FeatureTable, masks: dict[str, Path], *, views: int, epochs: int):
        self.table, self.masks, self.views = table, masks, views
        self._load = lru_cache(maxsize=views if views < epochs else 1)(self._load_view)

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Tokens `(N, rows, columns, dim)` float16 and masks `(N, crop, crop)` uint8 of epoch `epoch`, from 0."""
        return self._load(epoch % self.views)

    def _load_view(self, view: int) -> tuple[Tensor, Tensor]:
        rows = [row for group in self.table.groups_of(view) for row in self.table.group(group)]
        masks = np.stack([cut_mask(read_mask(self.masks[row.image_id]), row.view) for row in rows])
        return torch.stack([row.tokens for row in rows]), torch.from_numpy(masks)


@dataclass(frozen=True)
class Alike:
    """Validation images of one size: ids, tokens `(n, rows, columns, dim)`, masks `(n, H, W)` uint8."""

    image_ids: list[str]
    tokens: Tensor
    masks: np.ndarray


class ValImages:
    """The validation set at native size, streamed from the table in bounded batches; masks stay in memory."""

    def __init__(self, table: FeatureTable, masks: dict[str, Path]):
        self.table, self.paths, self._masks = table, masks, {}

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Alike]:
        for group in range(self.table.groups):
            waiting = []
            for row in self.table.group(group):
                shape = (row.view.crop_height, row.view.crop_width)
                full = (len(waiting) + 1) * shape[0] * shape[1] > PIXELS
                if waiting and (full or waiting[0].view != row.view):
                    yield self._batch(waiting)
                    waiting = []
                waiting.append(row)
            yield self._batch(waiting)

    def _batch(self, rows) -> Alike:
        ids = [row.image_id for row in rows]
        masks = np.stack([self._mask(image_id) for image_id in ids])
        return Alike(ids, torch.stack([row.tokens for row in rows]), masks)

    def _mask(self, image_id: str) -> np.ndarray:
        if image_id not in self._masks:
            self._masks[image_id] = read_mask(self.paths[image_id])
        return self._masks[image_id]


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits `(B, rows, columns, classes)` stretched bilinearly to `(B, *size, classes)`."""
    stretched = F.interpolate(logits.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return stretched.permute(0, 2, 3, 1)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not void; 0 where all are. Logits are stretched to the masks.

    Classes come last: `cross_entropy` on `(pixels, classes)` is twice as fast as on `(B, classes, H, W)`.
    """
    stretched = upsample(logits, masks.shape[1:]).flatten(0, 2)
    total = F.cross_entropy(stretched, masks.flatten().long(), ignore_index=VOID, reduction="sum")
    return total / (masks != VOID).sum().clamp(min=1)


def train_epoch(
    head: nn.Module, optimizer, tokens: Tensor, masks: Tensor, batch: int, shuffle: torch.Generator
) -> float:
    """One pass over the views in random order, the last partial batch dropped; returns the mean loss of its steps."""
    device = next(head.parameters()).device
    head.train()
    losses = []
    order = torch.randperm(len(tokens), generator=shuffle)
    for chosen in order[: len(order) - len(order) % batch].split(batch):
        loss = pixel_loss(head(tokens[chosen].to(device).float()), masks[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.inference_mode()
def predict(head: nn.Module, images: ValImages) -> Iterator[tuple[Alike, Tensor]]:
    """Predicted classes `(n, H, W)` uint8 at full size, batch by batch: logits are stretched first, then argmax."""
    device = next(head.parameters()).device
    head.eval()
    for alike in images:
        logits = upsample(head(alike.tokens.to(device).float()), alike.masks.shape[1:])
        yield alike, logits.max(-1).indices.to(torch.uint8).cpu()  # twice as fast as argmax on a CPU


def evaluate(head: nn.Module, images: ValImages, classes: int) -> np.ndarray:
    """Confusion matrices of all validation images, `(N, classes, classes)`."""
    pairs = ((alike.masks, predicted.numpy()) for alike, predicted in predict(head, images))
    return np.concatenate([confusion(masks, predicted, classes) for masks, predicted in pairs])


def train(
    head: nn.Module, views: TrainViews, val: ValImages, classes: int, task: Segmentation, seed: int, name: str
) -> tuple[list[dict], np.ndarray]:
    """Train for `task.epochs`; returns the history, an epoch a dict, and the last epoch's confusion matrices.

    AdamW; the learning rate falls linearly to 0, a step an epoch.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / task.epochs)
    shuffle = torch.Generator().manual_seed(seed)
    history = []
    with tqdm(range(task.epochs), desc=name, unit="epoch") as bar:
        for epoch in bar:
            tokens, masks = views.epoch(epoch)
            loss = train_epoch(head, optimizer, tokens, masks, task.batch, shuffle)
            falling.step()
            matrices = evaluate(head, val, classes)
            measured = iou(matrices.sum(0))
            history.append({"epoch": epoch + 1, "train_loss": loss, "miou": measured.mean, "iou": measured.per_class})
            bar.set_postfix(loss=f"{loss:.3f}", mIoU=f"{measured.mean:.2f}")
    return history, matrices


def write_predictions(path: Path, head: nn.Module, images: ValImages) -> None:
    """All validation masks as predicted: `image_id`, `height`, `width`, `mask` (uint8 bytes, row by row)."""
    fields = [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("mask", pa.binary())]
    schema = pa.schema(fields)
    with replacing(path) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for alike, predicted in predict(head, images):
            sizes = [len(alike.image_ids) * [side] for side in predicted.shape[1:]]
            masks = [mask.numpy().tobytes() for mask in predicted]
            writer.write_table(pa.table([alike.image_ids, *sizes, masks], schema=schema))


def run_head(experiment: Experiment, name: str) -> Run:
    """Train the head `segmentation.heads.NAME` and write its weights, predictions and record."""
    task, manifest = experiment.segmentation, manifests.read()
    if name not in task.heads:
        raise InputError(f"unknown head '{name}'; segmentation.heads has: {', '.join(task.heads)}")
    asked, classes = task.heads[name], len(manifest.classes)
    expected = {"backbone": experiment.active.backbone, "manifest": manifests.fingerprint()}
    train_table, val_table = (FeatureTable(FEATURES / f"{split}.parquet", **expected) for split in ("train", "val"))
    masks = {row.image_id: Path(row.mask) for row in manifest.rows}
    made_from = train_table.provenance
    config = {"dim": made_from.dim, "classes": classes, "heads": made_from.heads, **asked.model_dump()}
    views = TrainViews(train_table, masks, views=task.views, epochs=task.epochs)
    _check_fits(name, config, views, task.batch)
    seed = experiment.seed_of(f"segmentation/{name}")
    torch.manual_seed(seed)
    head = build_head(**config).to("cuda" if torch.cuda.is_available() else "cpu")
    val = ValImages(val_table, masks)
    history, matrices = train(head, views, val, classes, task, seed, f"train_head@{name}")
    weights, predictions = WEIGHTS / f"{name}.safetensors", PREDICTIONS / f"{name}.parquet"
    with replacing(weights) as beside:
        save_file(
            {key: weight.cpu().contiguous() for key, weight in head.state_dict().items()},
            beside,
            metadata={"config": json.dumps(config), "classes": json.dumps(manifest.classes)},
        )
    write_predictions(predictions, head, val)
    run = Run(
        task="segmentation",
        name=name,
        params={
            "profile": experiment.profile,
            "seed": experiment.seed,
            **task.model_dump(exclude={"heads"}),
            **asked.model_dump(exclude_none=True),
        },
        metrics=_metrics(history, matrices, manifest.classes, experiment.seed_of(BOOTSTRAP)),
        history=[{**row, "iou": dict(zip(manifest.classes, row["iou"], strict=True))} for row in history],
        inputs={"source": manifest.source, "train_images": len(manifest.split("train")), **vars(made_from)},
        artefacts={"weights": str(weights), "predictions": str(predictions)},
        versions=package_versions("torch", "torchvision", "timm", "numpy", "pillow"),
    )
    write_run(run)
    return run


def _check_fits(name: str, config: dict, views: TrainViews, batch: int) -> None:
    first = views.table.group(0)[0].tokens
    if config["kernel"] and config["kernel"] > min(first.shape[:2]):
        raise InputError(
            f"segmentation.heads.{name}.kernel = {config['kernel']}: larger than the {first.shape[0]}x{first.shape[1]} "
            "grid of patch tokens"
        )
    images = len(views.table) // views.views
    if batch > images:
        raise InputError(f"segmentation.batch = {batch}: only {images} training images; an epoch would have no step")


def _metrics(history: list[dict], matrices: np.ndarray, classes: tuple[str, ...], seed: int) -> dict:
    last, best = history[-1], max(history, key=lambda row: row["miou"])
    low, high = interval(mean_iou_draws(matrices, seed=seed))
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
    torch.set_flush_denormal(True)
    start = time.perf_counter()
    run = run_head(load_experiment(), name)
    if run.metrics["absent_classes"]:
        print(f"{name}: in neither truth nor prediction, left out of mIoU: {', '.join(run.metrics['absent_classes'])}")
    tracking.register(run, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("head", help="a key of segmentation.heads in params.yaml")
    head_name = parser.parse_args().head
    with stage(f"train_head@{head_name}"):
        main(head_name)
