"""Stage `encode_image_text`: every image view through BLIP's image tower once, every caption through its text tower.

An interrupted run continues from its last finished shard. With `captioning.model: catr`, captions are decoded from
the output of CATR's encoder instead of BLIP's image states.
"""

import argparse
from typing import cast

from transformers import BlipVisionConfig

from stages.core.atomic import remove_folders
from stages.core.messages import join_names
from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.core.weights_file import save_weights
from stages.data import manifest as manifests
from stages.data.dataset import MappedDataset
from stages.data.manifest import Manifest, Row
from stages.features.extraction import TokenJob, extract_shards
from stages.features.shards import RowKey, Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.features.vectors import Vectors, concat_vectors, write_vectors
from stages.image_text import DECODER_STATES, RETRIEVAL_VECTORS
from stages.image_text.decoder_states import BlipStatesJob, CatrStatesJob
from stages.image_text.image_encoder import load_catr
from stages.image_text.pixels import train_dataset, val_dataset
from stages.image_text.retrieval_vectors import ViewVectorsJob, class_tokens, encode_captions
from stages.image_text.towers import Towers, load_blip
from stages.image_text.vocabulary import unknown_words
from stages.models import catr, vit
from stages.params.compute import Compute
from stages.params.experiment import Experiment, load_experiment

UNKNOWN_WORDS = 12  # most frequent unknown words in the metadata


def check_captions(manifest: Manifest) -> None:
    """Raise `InputError` if an image has no caption."""
    missing = [row.image_id for row in manifest.rows if not row.captions]
    if missing:
        count = f"{len(missing)} image{'s have' if len(missing) > 1 else ' has'} no caption"
        raise InputError(f"{manifest.source}/captions.json: {count}: {join_names(missing)}")


def blip_metadata(towers: Towers, experiment: Experiment) -> FeatureMetadata:
    """Return the metadata of BLIP's states of whole images."""
    config = cast(BlipVisionConfig, towers.model.config.vision_config)
    side = towers.pixels.side
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


def resume_key(metadata: dict[str, str], compute: Compute) -> dict[str, str]:
    """Return what an interrupted extraction must share with the one that resumes it: compilation changes rounding."""
    return metadata | {"compile": str(compute.compile)}


def encode_blip_states(towers: Towers, manifest: Manifest, metadata: FeatureMetadata) -> Shards:
    """Encode the validation images with BLIP; return the shards of their states, not committed."""
    rows = manifest.split("val")
    job = BlipStatesJob(towers, rows, metadata)
    return encode_states(job, rows, towers.compute)


def encode_catr_states(experiment: Experiment, manifest: Manifest) -> Shards:
    """Encode the validation images with CATR; return the shards of their states, not committed."""
    model = load_catr(experiment)
    metadata = FeatureMetadata(
        backbone=str(experiment.active.catr),
        weights=vit.weights_hash(model),
        transform=f"longest side {model.config.longer_side}, mean and std 0.5",
        dim=model.config.hidden,
        heads=model.config.heads,
        patch=f"{catr.PATCH}x{catr.PATCH}",
        manifest=manifests.manifest_hash(),
        precision=experiment.compute.precision,
    )
    rows = tuple(sorted(manifest.split("val"), key=lambda row: (row.height, row.width)))
    return encode_states(CatrStatesJob(model, rows, metadata, experiment.compute), rows, experiment.compute)


def encode_states(job: TokenJob, rows: tuple[Row, ...], compute: Compute) -> Shards:
    """Run a job over validation images; return the shards, not committed."""
    keys = [(row.image_id, 0) for row in rows]
    key = resume_key(job.metadata.as_text(), compute)
    shards = Shards(DECODER_STATES / "val", keys, key, location=compute.store)
    extract_shards(job, shards, compute, "encode val images")
    return shards


def encode_views(
    towers: Towers, dataset: MappedDataset, keys: list[RowKey], name: str, metadata: dict[str, str]
) -> tuple[Vectors, Shards]:
    """Return the vector of every view of `dataset`, and the shards that they are read from: delete these at the end."""
    compute = towers.compute
    shards = Shards(RETRIEVAL_VECTORS / name, keys, resume_key(metadata, compute), location=compute.store)
    job = ViewVectorsJob(towers, dataset, keys, metadata)
    return concat_vectors(extract_shards(job, shards, compute, f"encode {name} views")), shards


def encode_retrieval(
    towers: Towers, experiment: Experiment, manifest: Manifest, metadata: dict[str, str], states: Shards
) -> tuple[dict[str, Vectors], list[Shards]]:
    """Return the vectors of training views, validation images and captions, by table name; and shards to delete.

    `states` are the validation images' decoder states. If they are BLIP's, their class tokens are the vectors.
    """
    share, unknown = unknown_words(towers.tokenizer, [text for row in manifest.rows for text in row.captions])
    if unknown:
        source = experiment.active.blip
        print(f"{share:.1%} of the captions' words are unknown to {source}: {join_names(unknown)}")
    caption_metadata = metadata | {
        "unknown_share": f"{share:.4f}",
        "unknown_words": " ".join(unknown[:UNKNOWN_WORDS]),
    }

    views = experiment.retrieval.views
    probability = experiment.retrieval.augment_probability
    side = towers.pixels.side
    train_rows = manifest.split("train") * views
    view_indices = [view for view in range(views) for _ in manifest.split("train")]
    seeds = [
        experiment.seed_for(f"retrieval/view/{view}/{row.image_id}")
        for view, row in zip(view_indices, train_rows, strict=True)
    ]
    train_metadata = caption_metadata | {
        "transform": f"{views} views: resized crop of 0.5 to 1 of the area to {side}x{side}, flip, RandAugment(2, 5)",
        "augment_probability": str(probability),
        "seed": str(experiment.seed),
    }
    dataset = train_dataset(train_rows, side, seeds, probability)
    train_keys = [(row.image_id, view) for row, view in zip(train_rows, view_indices, strict=True)]
    train_vectors, train_shards = encode_views(towers, dataset, train_keys, "train", train_metadata)
    shards = [train_shards]

    if experiment.captioning.model == "blip":
        val_vectors = class_tokens(FeatureTable(states.folder), metadata)
    else:
        rows = manifest.split("val")
        val_keys = [(row.image_id, 0) for row in rows]
        val_vectors, val_shards = encode_views(towers, val_dataset(rows, side), val_keys, "val", metadata)
        shards.append(val_shards)
    captions = encode_captions(towers, manifest.rows, caption_metadata)
    return {"train": train_vectors, "val": val_vectors, "captions": captions}, shards


def write_retrieval(towers: Towers, tables: dict[str, Vectors]) -> None:
    """Write the vector tables, and the projections that BLIP came with."""
    for name, vectors in tables.items():
        write_vectors(RETRIEVAL_VECTORS / f"{name}.parquet", vectors)
    projections = {
        name: weight
        for name, weight in towers.model.state_dict().items()
        if name.startswith(("vision_proj.", "text_proj."))
    }
    save_weights(RETRIEVAL_VECTORS / "projections.safetensors", projections)


def main() -> None:
    experiment = load_experiment()
    manifest = manifests.read_manifest()
    remove_folders(DECODER_STATES, RETRIEVAL_VECTORS)
    if not any(row.captions for row in manifest.rows):
        reason = f"{manifest.source} has no captions (captions.json): no captioning, no retrieval"
        mark_skipped(reason, DECODER_STATES, RETRIEVAL_VECTORS)
        return
    check_captions(manifest)
    towers = load_blip(experiment)
    metadata = blip_metadata(towers, experiment)
    if experiment.captioning.model == "blip":
        states = encode_blip_states(towers, manifest, metadata)
    else:
        states = encode_catr_states(experiment, manifest)
    vector_shards: list[Shards] = []
    if towers.missing_tower:
        mark_skipped(f"no retrieval: {towers.missing_tower}", RETRIEVAL_VECTORS)
    else:
        tables, vector_shards = encode_retrieval(towers, experiment, manifest, metadata.as_text(), states)
        write_retrieval(towers, tables)
    # Only now are all outputs written, and nothing is left to resume.
    states.commit()
    for shards in vector_shards:
        shards.delete()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("encode_image_text"):
        main()
