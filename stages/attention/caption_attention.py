"""Stage `caption_attention`: the decoder's cross-attention for each word of a caption, in pictures and numbers."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from stages.attention import BOOTSTRAP, PICTURES, SHARES
from stages.attention.attention_share import compute_attention_share
from stages.attention.examples import picture_path, select_examples
from stages.attention.maps import attention_mass, density, object_area
from stages.attention.panels import Panel, plot_rows
from stages.attention.word_referents import CLASS, COLOR, ENDING, OTHER, Referent, ReferentFinder
from stages.attention.words import Word, extract_words
from stages.captioning import PREDICTIONS
from stages.captioning.captioner import Captioner, caption_text, load_captioner
from stages.captioning.decoding import caption_tokens
from stages.core.atomic import atomic_write, remove_folders
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.manifest import Row
from stages.data.voc import VOID
from stages.features.tokens import FeatureTable
from stages.image_text import DECODER_STATES
from stages.params.attention import CaptionAttention
from stages.params.experiment import Experiment, load_experiment

TASK = "caption_attention"
BATCH_SIZE = 16  # images


def measure_words(row: Row, words: list[Word], referents: list[Referent | None], background: int | None) -> list[dict]:
    """One row per word that has a referent in the image: the attention mass on it, and its area, in percent.

    `other_words_mass` is the mean mass of the caption's other words on the same object, or None if there are no
    others. It equals `mass` if all words have the same map. Words that refer to all objects need a `background` class.
    """
    assert row.mask is not None
    mask = read_mask(Path(row.mask))
    height, width = mask.shape
    counted = mask != VOID
    maps = torch.stack([word.patch_attention for word in words])
    densities = density(maps.double().numpy(), (height, width))  # (words, H, W)
    measurements = []
    for position, (word, referent) in enumerate(zip(words, referents, strict=True)):
        if referent is None or (referent.label is None and background is None):
            continue
        inside = counted & (mask != background if referent.label is None else mask == referent.label)
        area = object_area(inside, counted)
        if not 0 < area < 100:
            continue  # any attention has the same mass on it
        masses = attention_mass(densities, inside, counted)  # (words,)
        other_masses = np.delete(masses, position)
        measurements.append(
            {
                "image_id": row.image_id,
                "position": position,
                "word": word.text,
                "kind": referent.kind,
                "mass": float(masses[position]),
                "other_words_mass": float(other_masses.mean()) if len(other_masses) else None,
                "area": area,
                "class_token": word.class_token_share,
            }
        )
    return measurements


def compute_metrics(measurements: list[dict], seed: int) -> dict:
    """Attention shares per kind of word, the mean mass of the other words, and the interval of the difference."""
    image_ids = dict.fromkeys(row["image_id"] for row in measurements)
    image_numbers = {image_id: number for number, image_id in enumerate(image_ids)}
    class_token = float(np.mean([row["class_token"] for row in measurements]))
    metrics: dict = {"images": len(image_ids), "class_token": class_token}
    for kind in (CLASS, COLOR, ENDING, OTHER):
        rows = [row for row in measurements if row["kind"] == kind and row["other_words_mass"] is not None]
        if not rows:
            continue
        mass = np.array([row["mass"] for row in rows])
        other_mass = np.array([row["other_words_mass"] for row in rows])
        area = np.array([row["area"] for row in rows])
        images = np.array([image_numbers[row["image_id"]] for row in rows])
        share = compute_attention_share(mass, area, images, seed=seed)
        metrics |= {f"{kind}_{key}": value for key, value in share.items()}
        low, high = confidence_interval(bootstrap_means(mass - other_mass, images, seed=seed))
        metrics |= {
            f"{kind}_others": float(other_mass.mean()),
            f"{kind}_more": float((mass - other_mass).mean()),
            f"{kind}_more_low": low,
            f"{kind}_more_high": high,
        }
    return metrics


def describe_attention(params: CaptionAttention) -> str:
    """Which layer's and head's attention the pictures show."""
    layer = "last layer" if params.layer == -1 else f"layer {params.layer}"
    head = "mean of heads" if params.head == "mean" else f"head {params.head}"
    return f"cross-attention of the decoder's {layer}, {head}"


def plot_caption(
    path: Path,
    image: Image.Image,
    name: str,
    caption: str,
    words: list[Word],
    measurements: list[dict],
    params: CaptionAttention,
) -> None:
    """Plot the image, then one panel per word; below words that refer to an object, mass and area if measured."""
    notes = {
        row["position"]: f"mass {row['mass']:.0f} %, area {row['area']:.0f} %"
        for row in measurements
        if row["kind"] != OTHER
    }
    # All titles have two lines, so that panels align.
    panels = [
        Panel(f"{word.text}\n{notes.get(position, '')}", word.patch_attention) for position, word in enumerate(words)
    ]
    explanation = "; below a word: its attention mass on its object, and the object's area" if measurements else ""
    title = f'{name}: "{caption}"\n{describe_attention(params)}{explanation}'
    plot_rows(path, [(image, "image\n", panels)], title, shared_scale=True)


def caption_seed(experiment: Experiment) -> int | None:
    """The seed of the captions that are explained: the cell's first; None for a cell that does not sample."""
    return next(seed for name, seed in experiment.captioning.runs if name == experiment.attention.captions.cell)


def read_tokens(experiment: Experiment, end: int) -> dict[str, list[int]]:
    """Caption tokens by image ID of `attention.captions.cell`, up to the end token; a cell that samples, first seed."""
    cell = experiment.attention.captions.cell
    seed = caption_seed(experiment)
    of_seed = pc.field("seed").is_null() if seed is None else pc.field("seed") == seed
    rows = pq.read_table(PREDICTIONS, filters=(pc.field("cell") == cell) & of_seed).to_pylist()
    # With `captioning.stop: batch`, tokens follow the end; they are no words of the caption.
    return {row["image_id"]: caption_tokens(row["tokens"], 0, end) for row in rows}


def extract_all_words(
    captioner: Captioner, table: FeatureTable, experiment: Experiment
) -> Iterator[tuple[str, str, list[Word]]]:
    """Every image id of `table` with its caption, and the caption's words."""
    params = experiment.attention.captions
    prompt = captioner.tokenizer(experiment.captioning.cells[params.cell].prompt, add_special_tokens=False).input_ids
    captions_by_id = read_tokens(experiment, captioner.decoder.end)
    max_length = experiment.captioning.max_length
    with tqdm(total=len(table), desc="caption attention", unit="image", mininterval=1) as bar:
        for batch in table.batches(BATCH_SIZE):
            states = torch.stack([image.tokens for image in batch])
            captions = [captions_by_id[image.image_id] for image in batch]
            words_per_image = extract_words(captioner, params, states, prompt, captions, max_length)
            for image, caption, words in zip(batch, captions, words_per_image, strict=True):
                yield image.image_id, caption_text(captioner.tokenizer, prompt, caption), words
            bar.update(len(batch))


def analyze(experiment: Experiment) -> Run:
    """Plot the example images, measure the whole split, write the record."""
    params = experiment.attention.captions
    manifest = manifests.read_manifest()
    captioner = load_captioner(experiment, experiment.captioning.model)
    rows = {row.image_id: row for row in manifest.split("val")}
    examples_param = f"{experiment.profile}.examples.captions"
    examples = select_examples(manifest.split("val"), experiment.active.examples.captions, examples_param)
    pictures = {row.image_id: picture_path(PICTURES / TASK, row.image_id) for row in examples}
    table = FeatureTable(DECODER_STATES / "val", backbone=captioner.source, manifest=manifests.manifest_hash())
    finder = ReferentFinder(manifest)
    measurements = []
    for image_id, caption, words in extract_all_words(captioner, table, experiment):
        row = rows[image_id]
        row_measurements = []
        if row.mask:
            row_measurements = measure_words(row, words, finder.find(row, words), finder.background)
        measurements += row_measurements
        if image_id in pictures:
            image = read_image(Path(row.image))
            plot_caption(pictures[image_id], image, image_id, caption, words, row_measurements, params)
    shares = SHARES / TASK / "words.parquet"
    with atomic_write(shares) as temporary:
        pq.write_table(pa.Table.from_pylist(measurements), temporary, compression="zstd")
    seed = caption_seed(experiment)
    run = Run(
        task=TASK,
        name=params.cell,
        stage=TASK,
        params={
            "profile": experiment.profile,
            "base_seed": experiment.seed,
            "model": experiment.captioning.model,
            "stop": experiment.captioning.stop,
            **({} if seed is None else {"caption_seed": seed}),
            **params.model_dump(),
        },
        metrics=compute_metrics(measurements, experiment.seed_for(BOOTSTRAP)) if measurements else {},
        inputs={"source": manifest.source, **vars(table.metadata)},
        artifacts={"shares": str(shares), **{image_id: str(path) for image_id, path in pictures.items()}},
        versions=package_versions("torch", "transformers", "numpy", "pillow"),
    )
    write_run(run)
    return run


def main() -> None:
    experiment = load_experiment()
    folders = (PICTURES / TASK, SHARES / TASK, RUNS / TASK)
    remove_folders(*folders)
    reason = skip_reason(PREDICTIONS.parent)
    if reason:
        mark_skipped(reason, *folders)
        return
    analyze(experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
