"""Stage `extract_segmentation`: every image view through the frozen backbone once, into feature tables."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.core.atomic import remove_folders
from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.dataset import MappedDataset
from stages.data.images import read_image
from stages.data.manifest import Manifest, Row
from stages.data.views import View, crop_image, native_view, random_view
from stages.features.batching import batch_by_key
from stages.features.extraction import TokenJob, extract_shards
from stages.features.shards import RowKey, Shards
from stages.features.tokens import FeatureMetadata, ViewFeatures
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import get_device, mixed_precision, prepare_model
from stages.params.compute import Compute
from stages.params.experiment import Experiment, load_experiment
from stages.params.profiles import ViewParams
from stages.segmentation import FEATURES
from stages.segmentation.cost import Cost, write_cost

BATCH = 32  # views per batch at most
PIXELS = 2**21  # pixels per batch at most: 32 views of 256x256; a single view may have more

RowView = tuple[Row, int, View]  # an image, a view index, and how the view is cut


def train_views(rows: tuple[Row, ...], views: int, params: ViewParams, seed: int) -> list[RowView]:
    """Return `views` random views of every training image, ordered by view index.

    The crop depends only on (seed, image ID, view index), so any subset can be extracted on its own.
    """
    short_side = (params.short_side_min, params.short_side_max)
    row_views = []
    for index in range(views):
        for row in rows:
            rng = np.random.default_rng([seed, index, *row.image_id.encode()])
            row_views.append((row, index, random_view(rng, row.height, row.width, short_side, params.crop)))
    return row_views


def val_views(rows: tuple[Row, ...]) -> list[RowView]:
    """Return every validation image at native size, ordered by size, so that equal sizes share batches."""
    by_size = sorted(rows, key=lambda row: (row.height, row.width))
    return [(row, 0, native_view(row.height, row.width)) for row in by_size]


def load_pixels(row_view: RowView) -> Tensor:
    """Return the pixels of a view, `(3, H, W)` uint8."""
    row, _, view = row_view
    return torch.from_numpy(crop_image(read_image(Path(row.image)), view).transpose(2, 0, 1))


def split_batches(views: list[RowView], span: range, batch_size: int) -> Iterator[list[int]]:
    """Divide the indices in `span` into batches of consecutive views with one shape and one view index.

    A batch has at most `batch_size` views and at most `PIXELS` pixels.
    """

    def index_and_shape(index: int) -> tuple[int, int, int]:
        _, view_index, view = views[index]
        return view_index, view.crop_height, view.crop_width

    return batch_by_key(span, index_and_shape, lambda key: max(1, min(batch_size, PIXELS // (key[1] * key[2]))))


@dataclass
class SegmentationJob(TokenJob):
    """The patch tokens of views, through a frozen backbone."""

    backbone: vit.Backbone
    views: list[RowView]
    metadata: FeatureMetadata
    compute: Compute
    batch_size: int = BATCH

    @property
    def model(self) -> vit.Backbone:
        return self.backbone

    def prepare(self) -> None:
        prepare_model(self.backbone, self.compute)

    @property
    def dataset(self) -> MappedDataset[RowView]:
        return MappedDataset(self.views, load_pixels)

    def split_batches(self, rows: range) -> Iterator[list[int]]:
        return split_batches(self.views, rows, self.batch_size)

    def forward(self, inputs: Tensor) -> Tensor:
        with mixed_precision(self.compute):
            return self.backbone(inputs.to(get_device(), non_blocking=True)).patches.half()

    def view_features(self, index: int, tokens: Tensor) -> ViewFeatures:
        row, view_index, view = self.views[index]
        return ViewFeatures(row.image_id, view_index, view, tokens)


def view_keys(views: list[RowView]) -> list[RowKey]:
    """Return the image ID and the view index of every view."""
    return [(row.image_id, view_index) for row, view_index, _ in views]


def check_sizes(manifest: Manifest, backbone: vit.Backbone, crop: int, profile: str) -> None:
    """Raise `InputError` if a view is smaller than one patch."""
    rows, columns = backbone.patch
    if crop < max(rows, columns):
        raise InputError(f"{profile}.view.crop = {crop}: smaller than one {rows}x{columns} patch of the backbone")
    for row in manifest.split("val"):
        if not all(backbone.grid(row.height, row.width)):
            raise InputError(f"{row.image}: {row.width}x{row.height} pixels, smaller than one {rows}x{columns} patch")


def build_metadata(
    experiment: Experiment, backbone: vit.Backbone, transform: str, source: str | None = None, layers: str = "last"
) -> FeatureMetadata:
    """Return the metadata of a table of this experiment whose views are cut by `transform`.

    `source` is the backbone's, by default that of the profile's own.
    """
    return FeatureMetadata(
        backbone=source or experiment.active.backbone,
        weights=vit.weights_hash(backbone.vit),
        transform=f"{transform}, mean {backbone.mean}, std {backbone.std}",
        dim=backbone.dim,
        heads=backbone.heads,
        patch=f"{backbone.patch[0]}x{backbone.patch[1]}",
        manifest=manifests.manifest_hash(),
        precision=experiment.compute.precision,
        layers=layers,
    )


@torch.inference_mode()
def measure_cost(backbone: vit.Backbone, side: int) -> Cost:
    """The cost of a backbone on a training view of `side` x `side` pixels."""
    device = next(backbone.parameters()).device
    view = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    # The counter does not know the fused attention kernels of CPUs. MATH is attention as two products of matrices.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        patches = backbone(view).patches
    # A classification layer, which the patch tokens do not depend on, is not counted.
    parameters = sum(weight.numel() for name, weight in backbone.named_parameters() if not name.startswith("vit.head."))
    return Cost(parameters, counter.get_total_flops(), patches[0, ..., 0].numel())


def extract(
    experiment: Experiment,
    manifest: Manifest,
    backbone: vit.Backbone,
    folder: Path,
    source: str | None = None,
    layers: str = "last",
) -> None:
    """Write the tables `train` and `val` of a backbone to `folder`, and what the backbone costs.

    `source` and `layers` are those of `build_metadata`. Raises `InputError` for images smaller than a patch.
    """
    params = experiment.active.view
    check_sizes(manifest, backbone, params.crop, experiment.profile)
    views = experiment.segmentation.views
    view_seed = experiment.seed_for("segmentation/views")
    views_by_split = {
        "train": train_views(manifest.split("train"), views, params, view_seed),
        "val": val_views(manifest.split("val")),
    }
    short_side = f"short side {params.short_side_min} to {params.short_side_max}"
    transforms = {"train": f"{views} views, {short_side}, crop {params.crop}, flip", "val": "native size"}
    metadata = {
        split: build_metadata(experiment, backbone, transform, source, layers)
        for split, transform in transforms.items()
    }

    remove_folders(folder)
    # Params that the tokens depend on and that their metadata does not hold.
    resume_key = {"seed": experiment.seed, "compile": experiment.compute.compile}
    cost = measure_cost(backbone, params.crop)  # before `compile` replaces the backbone's own code
    tables = []
    for split, split_views in views_by_split.items():
        key = vars(metadata[split]) | resume_key
        shards = Shards(folder / split, view_keys(split_views), key, location=experiment.compute.store)
        job = SegmentationJob(backbone, split_views, metadata[split], experiment.compute)
        extract_shards(job, shards, experiment.compute, f"extract {split}")
        tables.append(shards)
    write_cost(folder, cost)
    for shards in tables:  # all or none: a table alone is of no use
        shards.commit()


def main() -> None:
    experiment = load_experiment()
    manifest = manifests.read_manifest()
    if not manifest.has_masks:
        mark_skipped(f"{manifest.source} has no masks: no segmentation", FEATURES)
        return
    extract(experiment, manifest, load_vit("backbone", experiment), FEATURES)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("extract_segmentation"):
        main()
