"""Stage `class_attention`: class token attention of the pretrained and the fine-tuned ViT, in pictures and numbers."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.attention import BOOTSTRAP, PICTURES, SHARES
from stages.attention.attention_share import compute_attention_share
from stages.attention.class_token import AttentionMaps, class_token_attention, resize_to_patches
from stages.attention.examples import select_examples
from stages.attention.maps import attention_mass, density, object_area, peak_pixel
from stages.attention.panels import Panel, plot_rows
from stages.classification import WEIGHTS, classifier
from stages.core.atomic import atomic_write, remove_folders
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.runs import RUNS, Run, package_versions, run_key, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.manifest import LABELED, Manifest, Row, evenly_spaced
from stages.data.voc import BACKGROUND, VOID
from stages.features.batching import batch_by_key
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import get_device
from stages.models.vit import Backbone
from stages.params.attention import ClassTokenAttention
from stages.params.experiment import Experiment, load_experiment

TASK = "class_attention"
BATCH_SIZE = 32  # square images; fewer of elongated ones


@dataclass(frozen=True)
class Model:
    """A ViT, the name of its run, and the inputs that its record names."""

    name: str
    backbone: Backbone
    inputs: dict[str, str]


def load_models(experiment: Experiment) -> list[Model]:
    """The profile's pretrained ViT and, if it was trained, the fine-tuned one, on this machine's device."""
    source = experiment.active.classifier.backbone
    setting = experiment.attention.class_token.setting
    models = [Model("pretrained", load_vit("classifier", experiment), {"backbone": source})]
    key = run_key(setting, experiment.classification.seeds[0])
    weights = WEIGHTS / key / "last.safetensors"
    if weights.is_file():
        inputs = {"backbone": str(weights), "setting": setting}
        models.append(Model("finetuned", classifier.load(weights).backbone, inputs))
    for model in models:
        model.backbone.to(get_device())
    return models


def missing_class_token(experiment: Experiment, backbone: Backbone) -> str | None:
    """Why there is no class token attention to plot, or None if there is."""
    return None if backbone.has_class_token else f"{experiment.active.classifier.backbone} has no class token"


def compute_maps(
    backbone: Backbone, rows: tuple[Row, ...], side: int, params: ClassTokenAttention
) -> Iterator[tuple[Row, AttentionMaps]]:
    """Every row with its image's attention maps, in order; neighboring images of one size share a batch."""
    images = ((row, resize_to_patches(read_image(Path(row.image)), side, backbone.patch)) for row in rows)

    def batch_size(shape: tuple[int, int, int]) -> int:
        """At most as many as need the memory of `BATCH_SIZE` squares: attention has (patches, patches) weights."""
        _, height, width = shape
        return max(1, min(BATCH_SIZE, int(BATCH_SIZE * (side * side / (height * width)) ** 2)))

    for batch in batch_by_key(images, lambda item: tuple(item[1].shape), batch_size):
        maps = class_token_attention(backbone, [pixels for _, pixels in batch], params.block, params.rollout)
        for (row, _), image_maps in zip(batch, maps, strict=True):
            yield row, image_maps


def measure_image(row: Row, maps: AttentionMaps, background: int) -> dict:
    """Attention mass on the objects of an image's mask, their area, and the pointing hit; all in percent.

    The pointing hit is 100 if the center of the patch with the highest attention is on an object, else 0. Its expected
    value under uniform attention is the area.
    """
    assert row.mask is not None
    mask = read_mask(Path(row.mask))
    height, width = mask.shape
    counted = mask != VOID
    inside = counted & (mask != background)
    masses = {}
    for name, attention in (("mean", maps.mean), ("rollout", maps.rollout)):
        if attention is not None:
            densities = density(attention.double().numpy(), (height, width))
            masses[f"{name}_mass"] = float(attention_mass(densities, inside, counted))
    pointing_hit = 100.0 * bool(inside[peak_pixel(maps.mean, (height, width))])
    return {"image_id": row.image_id, **masses, "area": object_area(inside, counted), "hit": pointing_hit}


def compute_metrics(measurements: list[dict], seed: int) -> dict:
    """Attention shares over all images, and the pointing game's accuracy, `hit`, in percent."""
    columns = {key: np.array([row[key] for row in measurements]) for key in measurements[0] if key != "image_id"}
    images = np.arange(len(measurements))
    metrics: dict = {"images": len(measurements)}
    for name in ("mean", "rollout"):
        if f"{name}_mass" in columns:
            share = compute_attention_share(columns[f"{name}_mass"], columns["area"], images, seed=seed)
            metrics |= {f"{name}_{key}": value for key, value in share.items()}
    low, high = confidence_interval(bootstrap_means(columns["hit"], images, seed=seed))
    return metrics | {"hit": float(columns["hit"].mean()), "hit_low": low, "hit_high": high}


def describe_block(params: ClassTokenAttention) -> str:
    """Which block's attention the pictures show."""
    return "last block" if params.block == -1 else f"block {params.block}"


def build_panels(maps: AttentionMaps) -> list[Panel]:
    """The mean of the heads, rollout if it was computed, then each head."""
    panels = [Panel("mean of heads", maps.mean)]
    if maps.rollout is not None:
        panels.append(Panel("rollout", maps.rollout))
    return panels + [Panel(f"head {index}", attention) for index, attention in enumerate(maps.heads)]


def plot_examples(path: Path, model: Model, rows: tuple[Row, ...], side: int, params: ClassTokenAttention) -> None:
    """Plot one row of panels per image."""
    panel_rows = [
        (read_image(Path(row.image)), row.image_id, build_panels(maps))
        for row, maps in compute_maps(model.backbone, rows, side, params)
    ]
    title = f"Attention of the class token, {model.name} ViT, {describe_block(params)}"
    plot_rows(path, panel_rows, title, shared_scale=False)


def measure_split(model: Model, manifest: Manifest, side: int, params: ClassTokenAttention) -> list[dict]:
    """Measure the validation images with masks, or the sample of them that `params` state.

    None if no mask class is the background.
    """
    if BACKGROUND not in manifest.classes:
        return []
    background = manifest.classes.index(BACKGROUND)
    rows = tuple(row for row in manifest.split("val") if row.mask)
    if params.images != "all":
        rows = evenly_spaced(rows, params.images)
    maps_of_rows = compute_maps(model.backbone, rows, side, params)
    bar = tqdm(maps_of_rows, f"class token attention, {model.name}", len(rows), unit="image", mininterval=1)
    measurements = [measure_image(row, maps, background) for row, maps in bar]
    # With objects everywhere or nowhere, any attention has the same mass on them.
    return [measurement for measurement in measurements if 0 < measurement["area"] < 100]


def analyze(model: Model, experiment: Experiment, manifest: Manifest) -> Run:
    """Plot the example images, measure the images with masks, write the record."""
    params = experiment.attention.class_token
    side = experiment.active.classifier.size.base
    examples_param = f"{experiment.profile}.examples.class_token"
    examples = select_examples(manifest.split("val"), experiment.active.examples.class_token, examples_param)
    picture = PICTURES / TASK / f"{model.name}.png"
    plot_examples(picture, model, examples, side, params)
    shares = SHARES / TASK / f"{model.name}.parquet"
    measurements = measure_split(model, manifest, side, params)
    with atomic_write(shares) as temporary:
        pq.write_table(pa.Table.from_pylist(measurements), temporary, compression="zstd")
    run = Run(
        task=TASK,
        name=model.name,
        stage=TASK,
        params={"profile": experiment.profile, "base_seed": experiment.seed, "short_side": side, **params.model_dump()},
        metrics=compute_metrics(measurements, experiment.seed_for(BOOTSTRAP)) if measurements else {},
        inputs={
            **model.inputs,
            "weights": vit.weights_hash(model.backbone),
            "source": manifest.source,
            "manifest": manifests.manifest_hash(LABELED),
        },
        artifacts={"shares": str(shares), "picture": str(picture)},
        versions=package_versions("torch", "timm", "numpy", "pillow"),
    )
    write_run(run)
    return run


def main() -> None:
    experiment = load_experiment()
    manifest = manifests.read_manifest(LABELED)
    folders = (PICTURES / TASK, SHARES / TASK, RUNS / TASK)
    remove_folders(*folders)
    models = load_models(experiment)
    reason = missing_class_token(experiment, models[0].backbone)
    if reason:
        mark_skipped(reason, *folders)
        return
    for model in models:
        analyze(model, experiment, manifest)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
