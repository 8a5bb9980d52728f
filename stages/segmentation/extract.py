"""Stage `extract_segmentation`: every image view through the frozen backbone once, into feature tables."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from stages.backbones import vit
from stages.data import manifest as manifests
from stages.data.images import read_image
from stages.data.manifest import Manifest, Row
from stages.features import Features, FeatureWriter, Provenance, feature_writer
from stages.params.experiment import Experiment, ViewParams, load_experiment
from stages.segmentation import FEATURES
from stages.stage import InputError, stage
from stages.views import View, cut_image, native_view, random_view

BATCH = 32  # views
PIXELS = 2**21  # of a batch of larger views: 32 of 256x256; one view alone may have more
WORKERS = min(2, os.cpu_count() or 1)


def train_views(rows: tuple[Row, ...], views: int, params: ViewParams, seed: int) -> list[tuple[Row, int, View]]:
    """Every training image once a view index; a view's randomness hangs on its image's id and index alone."""
    short_side = (params.short_side_min, params.short_side_max)

    def cut(row: Row, index: int) -> View:
        rng = np.random.default_rng([seed, index, *row.image_id.encode()])
        return random_view(rng, row.height, row.width, short_side, params.crop)

    return [(row, index, cut(row, index)) for index in range(views) for row in rows]


def val_views(rows: tuple[Row, ...]) -> list[tuple[Row, int, View]]:
    """Every validation image at its native size, like sizes side by side so that they share batches."""
    alike = sorted(rows, key=lambda row: (row.height, row.width))
    return [(row, 0, native_view(row.height, row.width)) for row in alike]


class Views(Dataset):
    """Cuts views: `(index, pixels (3, H, W) uint8)`."""

    def __init__(self, views: list[tuple[Row, int, View]]):
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        row, _, view = self.views[index]
        pixels = cut_image(read_image(Path(row.image)), view)
        return index, torch.from_numpy(pixels.transpose(2, 0, 1))


def batches_alike(views: list[tuple[Row, int, View]], size: int) -> Iterator[list[int]]:
    """Runs of neighbours that share one shape and one view index, at most `size` views or `PIXELS` long."""
    batch: list[int] = []
    for index, (_, number, view) in enumerate(views):
        if batch:
            _, last_number, last = views[batch[-1]]
            alike = (number, view.crop_height, view.crop_width) == (last_number, last.crop_height, last.crop_width)
            full = (len(batch) + 1) * view.crop_height * view.crop_width > PIXELS
            if len(batch) == size or full or not alike:
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def extract(
    backbone: vit.Backbone,
    views: list[tuple[Row, int, View]],
    writer: FeatureWriter,
    *,
    name: str = "extract",
    batch: int = BATCH,
    workers: int = WORKERS,
) -> None:
    """Stream `views` through `backbone` into `writer`, each once; holds a few batches at a time."""
    device = next(backbone.parameters()).device
    loader = DataLoader(Views(views), batch_sampler=list(batches_alike(views, batch)), num_workers=workers)
    with tqdm(total=len(views), desc=name, unit="view", mininterval=1) as bar:
        for indices, pixels in loader:
            tokens = backbone(pixels.to(device, non_blocking=True)).patches.half().cpu()
            for index, one in zip(indices.tolist(), tokens, strict=True):
                row, number, view = views[index]
                writer.add(Features(row.image_id, number, view, one))
            bar.update(len(indices))


def check_sizes(manifest: Manifest, backbone: vit.Backbone, crop: int, profile: str) -> None:
    """Raise `InputError` where a view is smaller than one patch."""
    rows, columns = backbone.patch
    if crop < max(rows, columns):
        raise InputError(f"{profile}.view.crop = {crop}: smaller than one {rows}x{columns} patch of the backbone")
    for row in manifest.split("val"):
        if not all(backbone.grid(row.height, row.width)):
            raise InputError(f"{row.image}: {row.width}x{row.height} pixels, smaller than one {rows}x{columns} patch")


def provenance(experiment: Experiment, backbone: vit.Backbone, transform: str) -> Provenance:
    """What the tables of this experiment are made with."""
    return Provenance(
        backbone=experiment.active.backbone,
        weights=vit.weights_hash(backbone.vit),
        transform=f"{transform}, mean {backbone.mean}, std {backbone.std}",
        dim=backbone.dim,
        heads=backbone.heads,
        patch=f"{backbone.patch[0]}x{backbone.patch[1]}",
        manifest=manifests.fingerprint(),
    )


def main() -> None:
    torch.set_flush_denormal(True)
    experiment = load_experiment()
    manifest, params = manifests.read(), experiment.active.view
    try:
        backbone = vit.load(experiment.active.backbone)
    except (FileNotFoundError, ValueError) as fault:
        raise InputError(f"{experiment.profile}.backbone: {fault}") from fault
    check_sizes(manifest, backbone, params.crop, experiment.profile)
    backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    task = experiment.segmentation
    splits = {
        "train": (
            train_views(manifest.split("train"), task.views, params, experiment.seed_of("segmentation/views")),
            f"{task.views} views, short side {params.short_side_min} to {params.short_side_max}, "
            f"crop {params.crop}, flip",
        ),
        "val": (val_views(manifest.split("val")), "native size"),
    }
    for split, (views, transform) in splits.items():
        with feature_writer(FEATURES / f"{split}.parquet", provenance(experiment, backbone, transform)) as writer:
            extract(backbone, views, writer, name=f"extract {split}")


if __name__ == "__main__":
    with stage("extract_segmentation"):
        main()
