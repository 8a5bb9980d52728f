"""Stage `class_attention`: where the class token looks, pretrained and fine-tuned, drawn and measured."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.attention import BOOTSTRAP, PICTURES, SHARES
from stages.attention.attention_share import compute_attention_share
from stages.attention.class_token import AttentionMaps, class_token_attention, resize_to_patches
from stages.attention.examples import select_examples
from stages.attention.maps import area, attention_mass, density, peak_pixel
from stages.attention.panels import Panel, draw_rows
from stages.classification import WEIGHTS, classifier
from stages.core.atomic import atomic_write
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.manifest import LABELED, Manifest, Row
from stages.data.voc import BACKGROUND, VOID
from stages.features.batching import batch_by_key
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.compute import get_device
from stages.models.vit import Backbone
from stages.params.attention import ClassTokenAttention
from stages.params.experiment import Experiment, load_experiment

TASK = "class_attention"
AT_ONCE = 32  # images of one size
PRETRAINED, FINETUNED = "pretrained", "finetuned"


@dataclass(frozen=True)
class Model:
    """A ViT that is looked into: its run's name, and what the record says of it."""

    name: str
    backbone: Backbone
    facts: dict[str, str]


def models(experiment: Experiment) -> list[Model]:
    """The profile's pretrained ViT, and the fine-tuned one where there is one; on the GPU where that is."""
    source, setting = experiment.active.classifier.backbone, experiment.attention.class_token.setting
    found = [Model(PRETRAINED, load_vit("classifier", experiment), {"backbone": source})]
    path = WEIGHTS / setting / "last.safetensors"
    if path.is_file():
        found.append(Model(FINETUNED, classifier.load(path).backbone, {"backbone": str(path), "setting": setting}))
    for model in found:
        model.backbone.to(get_device())
    return found


def no_class_token(experiment: Experiment, backbone: Backbone) -> str | None:
    """Why there is nothing to look at, or None."""
    return None if backbone.has_class_token else f"{experiment.active.classifier.backbone} has no class token"


def looks(
    backbone: Backbone, rows: tuple[Row, ...], side: int, asked: ClassTokenAttention
) -> Iterator[tuple[Row, AttentionMaps]]:
    """Every image's maps, in the order of `rows`; images of one size share a batch."""
    seen = ((row, resize_to_patches(read_image(Path(row.image)), side, backbone.patch)) for row in rows)
    for batch in batch_by_key(seen, lambda one: one[1].shape, lambda _: AT_ONCE):
        some, pixels = zip(*batch, strict=True)
        yield from zip(some, class_token_attention(backbone, list(pixels), asked.block, asked.rollout), strict=True)


def measured(row: Row, seen: AttentionMaps, background: int) -> dict:
    """How much of an image's maps lies on what its mask calls an object, in percent, and whether most does.

    `hit` is 100 where the middle of the patch that gets most is on the object: by chance, its area.
    """
    mask = read_mask(Path(row.mask))
    counted = mask != VOID
    inside = counted & (mask != background)
    kinds = {"mean": seen.mean} | ({} if seen.rollout is None else {"rollout": seen.rollout})
    masses = {
        f"{kind}_mass": float(attention_mass(density(one.double().numpy(), mask.shape), inside, counted))
        for kind, one in kinds.items()
    }
    hit = 100.0 * bool(inside[peak_pixel(seen.mean, mask.shape)])
    return {"image_id": row.image_id, **masses, "area": area(inside, counted), "hit": hit}


def metrics_of(found: list[dict], seed: int) -> dict:
    """Shares over all images, and how often the patch that gets most lies on an object."""
    columns = {key: np.array([one[key] for one in found]) for key in found[0] if key != "image_id"}
    images, metrics = np.arange(len(found)), {"images": len(found)}
    for kind in ("mean", "rollout"):
        if f"{kind}_mass" in columns:
            share = compute_attention_share(columns[f"{kind}_mass"], columns["area"], images, seed=seed)
            metrics |= {f"{kind}_{key}": value for key, value in asdict(share).items()}
    low, high = confidence_interval(bootstrap_means(columns["hit"], images, seed=seed))
    return metrics | {"hit": float(columns["hit"].mean()), "hit_low": low, "hit_high": high}


def way_of(asked: ClassTokenAttention) -> str:
    """Which attention is shown."""
    return "last block" if asked.block == -1 else f"block {asked.block}"


def panels_of(seen: AttentionMaps) -> list[Panel]:
    """The mean, rollout where there is one, then each head alone."""
    rolled = [] if seen.rollout is None else [Panel("rollout", seen.rollout)]
    heads = [Panel(f"head {number}", one) for number, one in enumerate(seen.heads)]
    return [Panel("mean of heads", seen.mean), *rolled, *heads]


def draw(path: Path, model: Model, rows: tuple[Row, ...], side: int, asked: ClassTokenAttention) -> None:
    """One picture: a line of panels an image."""
    drawn = [
        (read_image(Path(row.image)), row.image_id, panels_of(seen))
        for row, seen in looks(model.backbone, rows, side, asked)
    ]
    draw_rows(path, drawn, f"Attention of the class token, {model.name} ViT, {way_of(asked)}", shared=False)


def measure(model: Model, manifest: Manifest, side: int, asked: ClassTokenAttention) -> list[dict]:
    """Shares of all validation images whose masks tell objects from `background`."""
    if BACKGROUND not in manifest.classes:
        return []
    background, masked = manifest.classes.index(BACKGROUND), tuple(row for row in manifest.split("val") if row.mask)
    bar = tqdm(
        looks(model.backbone, masked, side, asked), f"look {model.name}", len(masked), unit="image", mininterval=1
    )
    found = [measured(row, seen, background) for row, seen in bar]
    return [one for one in found if 0 < one["area"] < 100]  # else there is nothing to tell apart


def run_model(model: Model, experiment: Experiment, manifest: Manifest) -> Run:
    """Draw the named images, measure all that have masks, write the record."""
    asked, side = experiment.attention.class_token, experiment.active.classifier.size.base
    rows = select_examples(
        manifest.split("val"), experiment.active.examples.class_token, f"{experiment.profile}.examples.class_token"
    )
    picture, shares = PICTURES / TASK / f"{model.name}.png", SHARES / TASK / f"{model.name}.parquet"
    draw(picture, model, rows, side, asked)
    found = measure(model, manifest, side, asked)
    with atomic_write(shares) as beside:
        pq.write_table(pa.Table.from_pylist(found), beside, compression="zstd")
    run = Run(
        task=TASK,
        name=model.name,
        stage=TASK,
        params={"profile": experiment.profile, "seed": experiment.seed, "short_side": side, **asked.model_dump()},
        metrics=metrics_of(found, experiment.seed_for(BOOTSTRAP)) if found else {},
        inputs={
            **model.facts,
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
    experiment, manifest = load_experiment(), manifests.read_manifest(LABELED)
    folders = (PICTURES / TASK, SHARES / TASK, RUNS / TASK)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    seen = models(experiment)
    reason = no_class_token(experiment, seen[0].backbone)
    if reason:
        mark_skipped(reason, *folders)
        return
    for model in seen:
        run_model(model, experiment, manifest)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
