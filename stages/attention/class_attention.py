"""Stage `class_attention`: where the class token looks, pretrained and fine-tuned, drawn and measured."""

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stages import tracking
from stages.absence import absence
from stages.attention import BOOTSTRAP, PICTURES, SHARES
from stages.attention.class_token import Looked, look, whole_patches
from stages.attention.maps import area, density, mass
from stages.attention.pictures import Panel, draw_rows
from stages.attention.shares import share_of
from stages.attention.shown import shown
from stages.attention.vits import load_vit
from stages.backbones import vit
from stages.backbones.vit import Backbone
from stages.classification import WEIGHTS, classifier
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.manifest import LABELLED, Manifest, Row
from stages.params.attention import ClassToken
from stages.params.experiment import Experiment, load_experiment
from stages.runs import FOLDER, Run, package_versions, write_run
from stages.stage import InputError, stage
from stages.voc import BACKGROUND, VOID
from stages.writing import replacing

TASK = "class_attention"
AT_ONCE = 32  # images of one size
PRETRAINED, FINETUNED = "pretrained", "finetuned"


def models(experiment: Experiment) -> dict[str, tuple[Backbone, dict]]:
    """The ViTs that are looked into, by run, each with what a record says of it."""
    source, setting = experiment.active.classifier.backbone, experiment.attention.class_token.setting
    found = {PRETRAINED: (load_vit(source, f"{experiment.profile}.classifier.backbone"), {"backbone": source})}
    if not absence(WEIGHTS / setting):
        path = WEIGHTS / setting / "last.safetensors"
        found[FINETUNED] = (classifier.load(path).backbone, {"backbone": str(path), "setting": setting})
    return found


def looks(backbone: Backbone, rows: tuple[Row, ...], side: int, asked: ClassToken) -> Iterator[tuple[Row, Looked]]:
    """Every image's maps, in the order of `rows`; images of one size share a batch."""
    waiting: list[tuple[Row, torch.Tensor]] = []
    for row in rows:
        pixels = whole_patches(read_image(Path(row.image)), side, backbone.patch)
        if waiting and (pixels.shape != waiting[0][1].shape or len(waiting) == AT_ONCE):
            yield from _looked(backbone, waiting, asked)
            waiting = []
        waiting.append((row, pixels))
    yield from _looked(backbone, waiting, asked)


def _looked(backbone: Backbone, waiting: list, asked: ClassToken) -> Iterator[tuple[Row, Looked]]:
    rows, pixels = zip(*waiting, strict=True)
    yield from zip(rows, look(backbone, list(pixels), asked.block, asked.rollout), strict=True)


def measured(row: Row, seen: Looked, background: int) -> dict:
    """How much of an image's maps lies on what its mask calls an object, and where the largest weight is; percent."""
    mask = read_mask(Path(row.mask))
    counted = mask != VOID
    inside = counted & (mask != background)
    kinds = {"mean": seen.mean} | ({} if seen.rollout is None else {"rollout": seen.rollout})
    spread = {kind: density(one.double().numpy(), mask.shape) for kind, one in kinds.items()}
    masses = {f"{kind}_mass": float(mass(one, inside, counted)) for kind, one in spread.items()}
    most = spread["mean"] == spread["mean"].max()  # the pixels of one patch
    return {"image_id": row.image_id, **masses, "area": area(inside, counted), "hit": 100.0 * bool(inside[most].any())}


def metrics_of(found: list[dict], seed: int) -> dict:
    """Shares over all images, and how often the patch that gets most touches an object."""
    images, areas = np.arange(len(found)), np.array([one["area"] for one in found])
    shares = {
        key.removesuffix("_mass"): share_of(np.array([one[key] for one in found]), areas, images, seed=seed)
        for key in found[0]
        if key.endswith("_mass")
    }
    return {
        **{f"{kind}_{key}": value for kind, share in shares.items() for key, value in asdict(share).items()},
        "hit": float(np.mean([one["hit"] for one in found])),
        "images": len(found),
    }


def way_of(asked: ClassToken) -> str:
    """Which attention is shown."""
    return "last block" if asked.block == -1 else f"block {asked.block}"


def panels_of(seen: Looked) -> list[Panel]:
    """The mean, rollout where there is one, then each head alone."""
    rolled = [] if seen.rollout is None else [Panel("rollout", seen.rollout)]
    heads = [Panel(f"head {number}", one) for number, one in enumerate(seen.heads)]
    return [Panel("mean of heads", seen.mean), *rolled, *heads]


def run_model(name: str, experiment: Experiment, manifest: Manifest, backbone: Backbone, facts: dict) -> Run:
    """Draw the named images, measure all that have masks, write the record."""
    asked, side = experiment.attention.class_token, experiment.active.classifier.size.base
    val = manifest.split("val")
    pictures = shown(val, experiment.active.look_at.class_token, f"{experiment.profile}.look_at.class_token")
    weights = vit.weights_hash(backbone)
    backbone.to(classifier.device())
    try:
        drawn = [
            (read_image(Path(row.image)), row.image_id, panels_of(seen))
            for row, seen in looks(backbone, pictures, side, asked)
        ]
    except (IndexError, ValueError) as fault:
        raise InputError(f"{facts['backbone']}: {fault}") from fault
    picture, shares = PICTURES / TASK / f"{name}.png", SHARES / TASK / f"{name}.parquet"
    draw_rows(picture, drawn, f"Attention of the class token, {name} ViT, {way_of(asked)}", shared=False)
    found = []
    if BACKGROUND in manifest.classes:
        background = manifest.classes.index(BACKGROUND)
        masked = tuple(row for row in val if row.mask)
        for row, seen in tqdm(
            looks(backbone, masked, side, asked), f"look {name}", len(masked), unit="image", mininterval=1
        ):
            found.append(measured(row, seen, background))
        found = [one for one in found if 0 < one["area"] < 100]  # else there is nothing to tell apart
    with replacing(shares) as beside:
        pq.write_table(pa.Table.from_pylist(found), beside, compression="zstd")
    run = Run(
        task=TASK,
        name=name,
        stage=TASK,
        params={"profile": experiment.profile, "seed": experiment.seed, "short_side": side, **asked.model_dump()},
        metrics=metrics_of(found, experiment.seed_of(BOOTSTRAP)) if found else {},
        inputs={**facts, "weights": weights, "source": manifest.source, "manifest": manifests.fingerprint(LABELLED)},
        artefacts={"shares": str(shares), "picture": str(picture)},
        versions=package_versions("torch", "timm", "numpy", "pillow"),
    )
    write_run(run)
    return run


def main() -> None:
    torch.set_flush_denormal(True)
    start, experiment, manifest = time.perf_counter(), load_experiment(), manifests.read(LABELLED)
    for folder in (PICTURES / TASK, SHARES / TASK, FOLDER / TASK):
        shutil.rmtree(folder, ignore_errors=True)
    runs = [run_model(name, experiment, manifest, *model) for name, model in models(experiment).items()]
    tracking.register(runs, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
