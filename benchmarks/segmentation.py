"""Compare the usual way to train heads with training on cached features: same images, views, heads and epochs.

    python -m benchmarks.segmentation                 the embedded backbone
    python -m benchmarks.segmentation --paper         ViT-S/16 at 256x256, random weights

The usual way computes the backbone for every batch, epoch and head, in training and validation. Ours extracts `views`
views of each training image and one of each validation image, then trains the heads on the tables. Both train the same
heads on the same views and count the same confusion matrices; the usual way upsamples, scores and predicts with torch's
own interpolate, cross entropy and argmax. Prints seconds, their ratio, the bound on it from counted backbone passes,
and how much of the extraction is the raw forward pass.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stages.data.dataset import MappedDataset
from stages.data.images import read_mask
from stages.data.manifest import Row
from stages.data.scenes.captions import scene_captions
from stages.data.scenes.scene import CLASSES, Style, draw_scene
from stages.data.views import crop_mask
from stages.data.voc import VOID
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.models import vit
from stages.params.compute import Compute
from stages.params.experiment import load_experiment
from stages.params.profiles import ViewParams
from stages.params.segmentation import Head, Segmentation
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.evaluation import Validation
from stages.segmentation.extract import (
    BATCH,
    RowView,
    SegmentationJob,
    load_pixels,
    split_batches,
    train_views,
    val_views,
    view_keys,
)
from stages.segmentation.heads import build_head
from stages.segmentation.heads.base import SegmentationHead
from stages.segmentation.iou import confusion
from stages.segmentation.training import train_head

COMPUTE = Compute(precision="float32", compile=False, workers=2, live=False)


def make_scenes(folder: Path, train: int, val: int, side: int) -> dict[str, tuple[Row, ...]]:
    """Draw scenes of one size, with captions, to disk and return their manifest rows by split."""
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    for index in range(train + val):
        split = "train" if index < train else "val"
        rng = np.random.default_rng([1, index])
        scene = draw_scene(rng, split, Style(side=side))
        image = folder / f"{index}.jpg"
        mask = folder / f"{index}.png"
        Image.fromarray(scene.image).save(image, quality=93)
        Image.fromarray(scene.mask).save(mask)
        captions = scene_captions(rng, scene)
        rows[split].append(Row(str(index), split, str(image), str(mask), captions, height=side, width=side))
    return {split: tuple(split_rows) for split, split_rows in rows.items()}


@contextmanager
def clocked(seconds: dict[str, float], name: str):
    """Store the seconds of the body as `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def new_head(head: Head, backbone: vit.Backbone) -> SegmentationHead:
    torch.manual_seed(0)
    shape = {"dim": backbone.dim, "classes": len(CLASSES), "attention_heads": backbone.heads}
    return build_head(head.kind, head.options, **shape)


def train_plain(backbone, rows, task: Segmentation, params: ViewParams, seed: int) -> int:
    """Train every head with the backbone in the loop; return the number of backbone passes.

    Loader workers stay alive over the epochs of a head. The backbone validates in batches, as the extraction does.
    """
    passes = 0
    masks = {row.image_id: read_mask(Path(row.mask)) for split_rows in rows.values() for row in split_rows}
    count = len(rows["train"])
    train_data = MappedDataset(train_views(rows["train"], task.epochs, params, seed), load_pixels)
    val_data = MappedDataset(val_views(rows["val"]), load_pixels)
    val_batches = list(split_batches(val_data.items, range(len(val_data)), BATCH))
    steps = count // task.batch_size  # per epoch
    settings = {"num_workers": COMPUTE.workers, "persistent_workers": True}
    for head_params in task.heads.values():
        head = new_head(head_params, backbone)
        optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay)
        # Epoch e draws from the indices of view e, without the last partial batch.
        orders = [epoch * count + torch.randperm(count)[: steps * task.batch_size] for epoch in range(task.epochs)]
        train_batches = torch.cat(orders).view(-1, task.batch_size).tolist()
        train_loader = DataLoader(train_data, batch_sampler=train_batches, **settings)
        val_loader = DataLoader(val_data, batch_sampler=val_batches, **settings)
        for step, (indices, pixels) in enumerate(train_loader, 1):
            with torch.no_grad():
                tokens = backbone(pixels).patches
            views = [train_data.items[index] for index in indices.tolist()]
            batch_masks = np.stack([crop_mask(masks[row.image_id], view) for row, _, view in views])
            logits = upsample_plain(head(tokens), pixels)
            loss = F.cross_entropy(logits, torch.from_numpy(batch_masks).long(), ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            passes += len(indices)
            if step % steps == 0:
                passes += validate_plain(backbone, head, val_loader, val_data.items, masks)
    return passes


def upsample_plain(logits, pixels):
    """Return logits at the size of `pixels`, `(B, classes, H, W)`."""
    return F.interpolate(logits.permute(0, 3, 1, 2), size=pixels.shape[2:], mode="bilinear", align_corners=False)


@torch.inference_mode()
def validate_plain(backbone, head, loader: DataLoader, views: list[RowView], masks: dict[str, np.ndarray]) -> int:
    """Evaluate a head with the backbone in the loop; return the number of backbone passes."""
    passes = 0
    for indices, pixels in loader:
        tokens = backbone(pixels).patches
        for index, image_tokens in zip(indices.tolist(), tokens.split(1), strict=True):
            predicted = upsample_plain(head(image_tokens), pixels).argmax(1).to(torch.uint8)
            confusion(masks[views[index][0].image_id][None], predicted.numpy(), len(CLASSES))
        passes += len(indices)
    return passes


def train_cached(backbone, rows, task: Segmentation, params: ViewParams, seed: int, folder: Path) -> dict[str, float]:
    """Extract features and train all heads with the pipeline's own functions; return seconds by part."""
    seconds: dict[str, float] = {}
    metadata = FeatureMetadata("benchmark", "", "", backbone.dim, backbone.heads, "", "")
    splits = {"train": train_views(rows["train"], task.views, params, seed), "val": val_views(rows["val"])}
    with clocked(seconds, "extract"):
        for split, views in splits.items():
            shards = Shards(folder / split, view_keys(views), vars(metadata), waiting=folder / "waiting")
            extract_shards(SegmentationJob(backbone, views, metadata, COMPUTE), shards, COMPUTE, split)
            shards.commit()
    masks = {row.image_id: Path(row.mask) for split_rows in rows.values() for row in split_rows}
    with clocked(seconds, "heads"):
        for name, head_params in task.heads.items():
            train_data = TrainViews(FeatureTable(folder / "train"), masks, views=task.views, epochs=task.epochs)
            val_data = ValImages(FeatureTable(folder / "val"), masks)
            head = new_head(head_params, backbone)
            settings = task.model_dump(include={"epochs", "batch_size", "lr", "weight_decay"})
            validation = Validation(head, val_data, len(CLASSES))
            train_head(head, train_data, **settings, seed=seed, name=name, validate=validation)
    return seconds


@torch.inference_mode()
def forward_seconds(backbone, count: int, side: int) -> float:
    """Return the seconds of the backbone alone for `count` views that are already in memory."""
    pixels = torch.randint(0, 256, (min(BATCH, count), 3, side, side), dtype=torch.uint8)
    backbone(pixels)  # warm-up
    start = time.perf_counter()
    for first in range(0, count, len(pixels)):
        backbone(pixels[: count - first])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="ViT-S/16, 256x256, random weights")
    parser.add_argument("--train", type=int, default=None, help="training images")
    parser.add_argument("--val", type=int, default=None, help="validation images")
    parser.add_argument("--views", type=int, nargs="+", default=[15, 4])
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    experiment = load_experiment()
    if args.paper:
        torch.manual_seed(0)
        backbone = vit.Backbone(timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True))
        params = experiment.paper.view
        side = 256
        train_count = args.train or 24
        val_count = args.val or 24
    else:
        backbone = vit.load(experiment.embedded.backbone)
        params = experiment.embedded.view
        side = params.crop
        train_count = args.train or 360
        val_count = args.val or 356
    task = experiment.segmentation.model_copy(update={"epochs": args.epochs})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_scenes(folder, train_count, val_count, side)
        seconds: dict[str, float] = {}
        with clocked(seconds, "plain"):
            plain_passes = train_plain(backbone, rows, task, params, seed=1)
        print(f"{train_count} + {val_count} images of {side}x{side}, {len(task.heads)} heads, {task.epochs} epochs")
        print(f"usual way     {seconds['plain']:8.1f} s   {plain_passes} backbone passes")
        for views in args.views:
            cached = train_cached(backbone, rows, task.model_copy(update={"views": views}), params, 1, folder)
            total = sum(cached.values())
            passes = views * train_count + val_count
            raw = forward_seconds(backbone, passes, side)
            ratio = seconds["plain"] / total
            bound = plain_passes / passes
            print(
                f"cached, V={views:<3} {total:8.1f} s   {passes} backbone passes; extraction {cached['extract']:.1f} s "
                f"(raw forward is {raw / cached['extract']:.0%} of it), heads {cached['heads']:.1f} s"
            )
            print(f"              ratio {ratio:.1f}; bound by counted passes {bound:.1f}; {ratio / bound:.0%} of it")


if __name__ == "__main__":
    main()
