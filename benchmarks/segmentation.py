"""The usual way against the cached way, in one run on the same images, views, heads and epochs.

    python -m benchmarks.segmentation                 the embedded backbone
    python -m benchmarks.segmentation --paper         ViT-S/16 at 256x256, random weights

The usual way recomputes the backbone for every batch, epoch and head, training and validation. Ours extracts
`views` views of each training image and one of each validation image, then trains the heads from the table. Both
train the same heads on the same views and count the same confusion matrices; the usual way stretches, scores and
judges logits with torch's own interpolate, cross entropy and argmax. Prints seconds, their ratio, the bound that
counted backbone passes allow, and extraction's share of the raw forward throughput.
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

from stages.data.images import read_mask
from stages.data.manifest import Row
from stages.data.scenes.scene import CLASSES, Style, draw_scene
from stages.data.views import crop_mask
from stages.data.voc import VOID
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.models import vit
from stages.params.compute import Compute
from stages.params.experiment import load_experiment
from stages.params.profiles import ViewParams
from stages.params.segmentation import Segmentation
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.extract import Views, batches_of, extract, train_views, val_views
from stages.segmentation.heads import build_head
from stages.segmentation.iou import confusion
from stages.segmentation.training import train

COMPUTE = Compute(precision="float32", compile=False, workers=2)


def make_scenes(folder: Path, train: int, val: int, side: int) -> dict[str, tuple[Row, ...]]:
    """Scenes of one size on disk, as manifest rows."""
    rows = {"train": [], "val": []}
    for index in range(train + val):
        split = "train" if index < train else "val"
        scene = draw_scene(np.random.default_rng([1, index]), split, Style(side=side))
        image, mask = folder / f"{index}.jpg", folder / f"{index}.png"
        Image.fromarray(scene.image).save(image, quality=93)
        Image.fromarray(scene.mask).save(mask)
        rows[split].append(Row(str(index), split, str(image), str(mask), height=side, width=side))
    return {split: tuple(made) for split, made in rows.items()}


@contextmanager
def clocked(seconds: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def new_head(row, backbone: vit.Backbone):
    torch.manual_seed(0)
    return build_head(dim=backbone.dim, classes=len(CLASSES), heads=backbone.heads, **row.model_dump())


def usual_way(backbone, rows, task: Segmentation, params: ViewParams, seed: int) -> int:
    """Every head, epoch and batch through the backbone, as a training script without a cache does; counts passes.

    One pool of loading workers a head and split, kept over the epochs; the backbone validates in batches as ours does.
    """
    passes = 0
    masks = {row.image_id: read_mask(Path(row.mask)) for split in rows.values() for row in split}
    count = len(rows["train"])
    training, natives = Views(train_views(rows["train"], task.epochs, params, seed)), Views(val_views(rows["val"]))
    steps = count // task.batch_size
    for asked in task.heads.values():
        head = new_head(asked, backbone)
        optimizer = torch.optim.AdamW(head.parameters(), lr=task.lr, weight_decay=task.weight_decay)
        orders = [epoch * count + torch.randperm(count)[: steps * task.batch_size] for epoch in range(task.epochs)]
        settings = {"num_workers": COMPUTE.workers, "persistent_workers": True}
        batches = DataLoader(training, batch_sampler=torch.cat(orders).view(-1, task.batch_size).tolist(), **settings)
        val = DataLoader(natives, batch_sampler=list(batches_of(natives.views, range(len(natives)), 32)), **settings)
        for step, (indices, pixels) in enumerate(batches, 1):
            with torch.no_grad():
                tokens = backbone(pixels).patches
            views = [training.views[index] for index in indices.tolist()]
            cut = np.stack([crop_mask(masks[row.image_id], view) for row, _, view in views])
            loss = F.cross_entropy(stretch(head(tokens), pixels), torch.from_numpy(cut).long(), ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            passes += len(indices)
            if step % steps == 0:
                passes += validate(backbone, head, val, natives.views, masks)
    return passes


def stretch(logits, pixels):
    """Logits at the pixels' size, `(B, classes, H, W)`."""
    return F.interpolate(logits.permute(0, 3, 1, 2), size=pixels.shape[2:], mode="bilinear", align_corners=False)


@torch.inference_mode()
def validate(backbone, head, loader, views, masks) -> int:
    """One validation of the usual way; returns the images seen."""
    seen = 0
    for indices, pixels in loader:
        tokens = backbone(pixels).patches
        for index, part in zip(indices.tolist(), tokens.split(1), strict=True):
            predicted = stretch(head(part), pixels).argmax(1).to(torch.uint8)
            confusion(masks[views[index][0].image_id][None], predicted.numpy(), len(CLASSES))
        seen += len(indices)
    return seen


def cached_way(backbone, rows, task: Segmentation, params: ViewParams, seed: int, folder: Path) -> dict[str, float]:
    """The pipeline's own functions, from extraction to the last epoch; seconds by part."""
    seconds: dict[str, float] = {}
    made_with = FeatureMetadata("benchmark", "", "", backbone.dim, backbone.heads, "", "")
    splits = {"train": train_views(rows["train"], task.views, params, seed), "val": val_views(rows["val"])}
    with clocked(seconds, "extract"):
        for split, views in splits.items():
            shards = Shards(folder / split, len(views), vars(made_with), waiting=folder / "waiting")
            extract(backbone, views, shards, made_with, COMPUTE)
            shards.commit()
    masks = {row.image_id: Path(row.mask) for split in rows.values() for row in split}
    with clocked(seconds, "heads"):
        for name, asked in task.heads.items():
            table = FeatureTable(folder / "train")
            views = TrainViews(table, masks, views=task.views, epochs=task.epochs)
            val = ValImages(FeatureTable(folder / "val"), masks)
            train(new_head(asked, backbone), views, val, len(CLASSES), task, seed, name)
    return seconds


@torch.inference_mode()
def forward_seconds(backbone, count: int, side: int, batch: int = 32) -> float:
    """Seconds that the backbone alone takes for `count` views that are already in memory."""
    pixels = torch.randint(0, 256, (min(batch, count), 3, side, side), dtype=torch.uint8)
    backbone(pixels)
    start = time.perf_counter()
    done = 0
    while done < count:
        backbone(pixels[: count - done])
        done += len(pixels)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="ViT-S/16, 256x256, random weights")
    parser.add_argument("--train", type=int, default=None, help="training images")
    parser.add_argument("--val", type=int, default=None, help="validation images")
    parser.add_argument("--views", type=int, nargs="+", default=[15, 4])
    parser.add_argument("--epochs", type=int, default=15)
    asked = parser.parse_args()
    torch.set_flush_denormal(True)
    experiment = load_experiment()
    if asked.paper:
        torch.manual_seed(0)
        backbone, params = (
            vit.Backbone(timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)),
            experiment.paper.view,
        )
        side, train_count, val_count = 256, asked.train or 24, asked.val or 24
    else:
        backbone, params = vit.load(experiment.embedded.backbone), experiment.embedded.view
        side, train_count, val_count = params.crop, asked.train or 360, asked.val or 356
    task = experiment.segmentation.model_copy(update={"epochs": asked.epochs})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_scenes(folder, train_count, val_count, side)
        seconds: dict[str, float] = {}
        with clocked(seconds, "usual"):
            usual_passes = usual_way(backbone, rows, task, params, seed=1)
        print(f"{train_count} + {val_count} images of {side}x{side}, {len(task.heads)} heads, {task.epochs} epochs")
        print(f"usual way     {seconds['usual']:8.1f} s   {usual_passes} backbone passes")
        for views in asked.views:
            ours = cached_way(backbone, rows, task.model_copy(update={"views": views}), params, 1, folder)
            total, passes = sum(ours.values()), views * train_count + val_count
            raw = forward_seconds(backbone, passes, side)
            ratio, bound = seconds["usual"] / total, usual_passes / passes
            print(
                f"cached, V={views:<3} {total:8.1f} s   {passes} backbone passes; extraction {ours['extract']:.1f} s "
                f"(raw forward is {raw / ours['extract']:.0%} of it), heads {ours['heads']:.1f} s"
            )
            print(f"              ratio {ratio:.1f}; bound by counted passes {bound:.1f}; {ratio / bound:.0%} of it")


if __name__ == "__main__":
    main()
