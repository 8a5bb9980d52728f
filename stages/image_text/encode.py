"""Stage `encode_image_text`: every image view through BLIP's image tower once, every caption through its text tower.

A killed run goes on from its last finished shard. With `captioning.model: catr` the states that captions are decoded
from are those of CATR's encoder.
"""

import shutil

from safetensors.torch import save_file

from stages.core.atomic import atomic_write
from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.manifest import Manifest
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.features.vectors import Vectors, write_vectors
from stages.image_text import DECODER_STATES, RETRIEVAL_VECTORS
from stages.image_text.decoder_states import encode_grids, encode_states
from stages.image_text.retrieval_vectors import class_tokens, encode_captions, encode_views
from stages.image_text.towers import Towers, load_towers
from stages.image_text.vocabulary import unknown_words
from stages.models import catr, vit
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import prepare_model
from stages.params.experiment import Experiment, load_experiment

NAMED = 12  # unknown words, or images without captions, that are named


def check_captioned(manifest: Manifest) -> None:
    """Raise `InputError` where some images have captions and others have none."""
    bare = [row.image_id for row in manifest.rows if not row.captions]
    if bare:
        count = f"{len(bare)} image{'s have' if len(bare) > 1 else ' has'} no caption"
        raise InputError(f"{manifest.source}/captions.json: {count}: {', '.join(bare[:NAMED])}")


def towers_of(experiment: Experiment) -> Towers:
    """The profile's BLIP; raises `InputError` naming its param."""
    checkpoint = read_checkpoint("blip", experiment.active.blip)
    with loading_errors(f"{experiment.profile}.blip", checkpoint.source):
        return load_towers(checkpoint, experiment.compute)


def provenance_of(towers: Towers, experiment: Experiment) -> FeatureMetadata:
    """What BLIP's states of whole images are made with."""
    config, side = towers.model.config.vision_config, towers.pixels.side
    return FeatureMetadata(
        backbone=experiment.active.blip,
        weights=vit.weights_hash(towers.model),
        transform=f"resized to {side}x{side} (bicubic), mean {towers.pixels.mean}, std {towers.pixels.std}",
        dim=config.hidden_size,
        heads=config.num_attention_heads,
        patch=f"{config.patch_size}x{config.patch_size}",
        manifest=manifests.manifest_hash(),
        precision=experiment.compute.precision,
    )


def as_text(provenance: FeatureMetadata) -> dict[str, str]:
    """A provenance as schema metadata."""
    return {key: str(value) for key, value in vars(provenance).items()}


def decoded(towers: Towers, experiment: Experiment, manifest: Manifest, provenance: FeatureMetadata) -> Shards:
    """All states of validation images, of the model that captions; they wait to be delivered."""
    rows = manifest.split("val")
    if experiment.captioning.model == "blip":
        shards = Shards(DECODER_STATES / "val", len(rows), as_text(provenance))
        encode_states(towers, rows, shards, provenance)
        return shards
    source = experiment.active.catr
    path = read_checkpoint("catr", source).file / catr.WEIGHTS
    with loading_errors(f"{experiment.profile}.catr", source):
        model = catr.load(path)
    made_with = FeatureMetadata(
        backbone=source,
        weights=vit.weights_hash(model),
        transform=f"longest side {catr.LONGER_SIDE}, mean and std 0.5",
        dim=model.config.hidden,
        heads=model.config.heads,
        patch=f"{catr.PATCH}x{catr.PATCH}",
        manifest=manifests.manifest_hash(),
        precision=experiment.compute.precision,
    )
    shards = Shards(DECODER_STATES / "val", len(rows), as_text(made_with))
    alike = tuple(sorted(rows, key=lambda row: (row.height, row.width)))
    encode_grids(prepare_model(model, experiment.compute), alike, shards, made_with, experiment.compute)
    return shards


def compared(
    towers: Towers, experiment: Experiment, manifest: Manifest, provenance: FeatureMetadata, states: Shards
) -> dict[str, Vectors]:
    """Vectors by table: of train views, of validation images, of captions."""
    source, views, facts = experiment.active.blip, experiment.retrieval.views, as_text(provenance)
    share, unknown = unknown_words(towers.tokenizer, [text for row in manifest.rows for text in row.captions])
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        print(f"{share:.1%} of the captions' words are unknown to {source}: {', '.join(unknown[:NAMED])}{more}")
    told = facts | {"unknown_share": f"{share:.4f}", "unknown_words": " ".join(unknown[:NAMED])}
    side, val, train = towers.pixels.side, manifest.split("val"), manifest.split("train") * views
    numbers = [view for view in range(views) for _ in manifest.split("train")]
    places = zip(train, numbers, strict=True)
    seeds = [experiment.seed_for(f"retrieval/view/{view}/{row.image_id}") for row, view in places]
    augmented = f"{views} views: resized crop of 0.5 to 1 of the area to {side}x{side}, flip, RandAugment(2, 5)"
    of_train = told | {"transform": augmented, "seed": str(experiment.seed)}
    found = {
        "train": encode_views(towers, train, numbers, seeds, Shards(RETRIEVAL_VECTORS / "train", len(train), of_train))
    }
    if experiment.captioning.model == "blip":
        found["val"] = class_tokens(FeatureTable(states.folder), facts)
    else:
        found["val"] = encode_views(
            towers, val, [0] * len(val), None, Shards(RETRIEVAL_VECTORS / "val", len(val), facts)
        )
    return found | {"captions": encode_captions(towers, manifest.rows, told)}


def write_compared(towers: Towers, tables: dict[str, Vectors]) -> None:
    """The vectors, and the projections that BLIP came with."""
    for name, vectors in tables.items():
        write_vectors(RETRIEVAL_VECTORS / f"{name}.parquet", vectors)
    projections = {
        name: weight.cpu().contiguous()
        for name, weight in towers.model.state_dict().items()
        if name.startswith(("vision_proj.", "text_proj."))
    }
    with atomic_write(RETRIEVAL_VECTORS / "projections.safetensors") as beside:
        save_file(projections, beside)


def main() -> None:
    experiment, manifest = load_experiment(), manifests.read_manifest()
    for folder in (DECODER_STATES, RETRIEVAL_VECTORS):
        shutil.rmtree(folder, ignore_errors=True)  # of another source, perhaps
    if not any(row.captions for row in manifest.rows):
        reason = f"{manifest.source} has no captions (captions.json): no captioning, no retrieval"
        mark_skipped(reason, DECODER_STATES, RETRIEVAL_VECTORS)
        return
    check_captioned(manifest)
    towers = towers_of(experiment)
    provenance = provenance_of(towers, experiment)
    states = decoded(towers, experiment, manifest, provenance)
    if towers.lacks:
        mark_skipped(f"no retrieval: {towers.lacks}", RETRIEVAL_VECTORS)
    else:
        write_compared(towers, compared(towers, experiment, manifest, provenance, states))
    states.commit()
    shutil.rmtree(Shards(RETRIEVAL_VECTORS, 0, {}).folder, ignore_errors=True)


if __name__ == "__main__":
    with stage("encode_image_text"):
        main()
