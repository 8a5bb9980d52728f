"""Stage `extract_segmentation`: every image view through the frozen backbone once, into feature tables."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.images import read_image
from stages.data.manifest import Manifest, Row
from stages.data.views import View, crop_image, native_view, random_view
from stages.features.batching import batch_by_key
from stages.features.loading import iterate_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, ViewFeatures, open_feature_writer
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import mixed_precision, prepare_model
from stages.params.compute import Compute
from stages.params.experiment import Experiment, load_experiment
from stages.params.profiles import ViewParams
from stages.segmentation import FEATURES

BATCH = 32  # views
PIXELS = 2**21  # of a batch of larger views: 32 of 256x256; one view alone may have more


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
        pixels = crop_image(read_image(Path(row.image)), view)
        return index, torch.from_numpy(pixels.transpose(2, 0, 1))


def batches_of(views: list[tuple[Row, int, View]], span: range, size: int) -> Iterator[list[int]]:
    """Neighbors in `span` that share one shape and one view index, at most `size` views or `PIXELS` at once."""

    def shape(index: int) -> tuple[int, int, int]:
        _, number, view = views[index]
        return number, view.crop_height, view.crop_width

    return batch_by_key(span, shape, lambda key: max(1, min(size, PIXELS // (key[1] * key[2]))))


@torch.inference_mode()
def extract(
    backbone: vit.Backbone,
    views: list[tuple[Row, int, View]],
    shards: Shards,
    made_with: FeatureMetadata,
    compute: Compute,
    batch: int = BATCH,
) -> None:
    """Stream `views` through `backbone` into the shards that are missing, each once; holds a few batches at a time."""
    device = next(backbone.parameters()).device

    def alike(span: range) -> Iterator[list[int]]:
        return batches_of(views, span, batch)

    for path, arriving in iterate_shards(shards, Views(views), alike, compute.workers, f"extract {shards.target.name}"):
        with open_feature_writer(path, made_with) as writer:
            for indices, pixels in arriving:
                with mixed_precision(compute):
                    tokens = backbone(pixels.to(device, non_blocking=True)).patches.half().cpu()
                for index, one in zip(indices, tokens, strict=True):
                    row, number, view = views[index]
                    writer.add(ViewFeatures(row.image_id, number, view, one))


def check_sizes(manifest: Manifest, backbone: vit.Backbone, crop: int, profile: str) -> None:
    """Raise `InputError` where a view is smaller than one patch."""
    rows, columns = backbone.patch
    if crop < max(rows, columns):
        raise InputError(f"{profile}.view.crop = {crop}: smaller than one {rows}x{columns} patch of the backbone")
    for row in manifest.split("val"):
        if not all(backbone.grid(row.height, row.width)):
            raise InputError(f"{row.image}: {row.width}x{row.height} pixels, smaller than one {rows}x{columns} patch")


def provenance(experiment: Experiment, backbone: vit.Backbone, transform: str) -> FeatureMetadata:
    """What the tables of this experiment are made with."""
    return FeatureMetadata(
        backbone=experiment.active.backbone,
        weights=vit.weights_hash(backbone.vit),
        transform=f"{transform}, mean {backbone.mean}, std {backbone.std}",
        dim=backbone.dim,
        heads=backbone.heads,
        patch=f"{backbone.patch[0]}x{backbone.patch[1]}",
        manifest=manifests.manifest_hash(),
        precision=experiment.compute.precision,
    )


def main() -> None:
    experiment = load_experiment()
    manifest, params, task = manifests.read_manifest(), experiment.active.view, experiment.segmentation
    if not all(row.mask for row in manifest.rows):
        mark_skipped(f"{manifest.source} has no masks: no segmentation", FEATURES)
        return
    backbone = load_vit("backbone", experiment)
    check_sizes(manifest, backbone, params.crop, experiment.profile)
    splits = {
        "train": (
            train_views(manifest.split("train"), task.views, params, experiment.seed_for("segmentation/views")),
            f"{task.views} views, short side {params.short_side_min} to {params.short_side_max}, "
            f"crop {params.crop}, flip",
        ),
        "val": (val_views(manifest.split("val")), "native size"),
    }
    made_with = {split: provenance(experiment, backbone, transform) for split, (_, transform) in splits.items()}
    prepare_model(backbone, experiment.compute)
    shutil.rmtree(FEATURES, ignore_errors=True)  # of another source, perhaps
    asked = {"seed": experiment.seed, "compile": experiment.compute.compile}
    tables = {
        split: Shards(FEATURES / split, len(views), vars(made_with[split]) | asked)
        for split, (views, _) in splits.items()
    }
    for split, (views, _) in splits.items():
        extract(backbone, views, tables[split], made_with[split], experiment.compute)
    for shards in tables.values():
        shards.commit()


if __name__ == "__main__":
    with stage("extract_segmentation"):
        main()
