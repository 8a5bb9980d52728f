"""Stage `caption_attention`: where the decoder looks for each word of a caption, drawn and measured."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from stages.attention.examples import select_examples
from stages.attention.maps import area, attention_mass, density
from stages.attention.panels import Panel, draw_panels
from stages.attention.word_referents import (
    CLASS,
    COLOR,
    ENDING,
    OTHER,
    Referent,
    referents_by_class_name,
    referents_in_scene,
)
from stages.attention.words import END, Word, attended, words_of
from stages.captioning import PREDICTIONS
from stages.captioning.captioner import Captioner, load_captioner
from stages.core.atomic import atomic_write
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.manifest import Manifest, Row
from stages.data.scenes.annotations import read_objects
from stages.data.voc import BACKGROUND, VOID
from stages.features.tokens import FeatureTable
from stages.image_text import DECODER_STATES
from stages.models.compute import get_device
from stages.params.attention import CaptionAttention
from stages.params.captioning import Captioning
from stages.params.experiment import Experiment, load_experiment

TASK = "caption_attention"
AT_ONCE = 16  # images


@dataclass(frozen=True)
class Reader:
    """A captioner, and what it is asked: which layer, which head."""

    captioner: Captioner
    asked: CaptionAttention

    def words(
        self, states: torch.Tensor, prompt: list[int], written: list[list[int]], longest: int
    ) -> list[list[Word]]:
        """The words of each caption `written` behind `prompt`, `<end>` among them unless it was cut off at `longest`.

        `states` `(N, rows, columns, dim)`, one line for BLIP's.
        """
        decoder = self.captioner.decoder
        start, room = [decoder.start, *prompt], longest - 1 - len(prompt)
        told = [one + [decoder.end] * (len(one) < room) for one in written]
        texts, states = [start + one for one in told], states.to(get_device()).float()
        rows = attended(decoder, states, texts, len(start), self.asked.layer, self.asked.head)
        grid = decoder.grid(states)
        return [words_of(self.captioner.tokenizer, one, weights, grid) for one, weights in zip(told, rows, strict=True)]


def written_in(path: Path, cell: str) -> dict[str, list[int]]:
    """Tokens of a cell's captions by image id."""
    table = pq.read_table(path, filters=pc.field("cell") == cell)
    return dict(zip(table["image_id"].to_pylist(), table["tokens"].to_pylist(), strict=True))


def measured(row: Row, words: list[Word], spoken: list[Referent | None], background: int | None) -> list[dict]:
    """How much of each word's map lies on what it is about, in percent; words about nothing here are left out.

    `others` is what the caption's other words put there, on average, None for a lone word: the same map for every word
    would have as much.
    """
    mask = read_mask(Path(row.mask))
    counted = mask != VOID
    maps = torch.stack([word.on_patches for word in words])
    spread = density(maps.double().numpy(), mask.shape)
    found = []
    for number, (word, about) in enumerate(zip(words, spoken, strict=True)):
        if about is None or (about.label is None and background is None):
            continue
        inside = counted & (mask != background if about.label is None else mask == about.label)
        covered = area(inside, counted)
        if not 0 < covered < 100:
            continue  # nothing to tell apart
        on_it = attention_mass(spread, inside, counted)
        others = float(np.delete(on_it, number).mean()) if len(on_it) > 1 else None
        facts = {"image_id": row.image_id, "place": number, "word": word.text, "kind": about.kind}
        facts |= {"mass": float(on_it[number]), "others": others, "area": covered}
        found.append(facts | {"class_token": word.elsewhere})
    return found


def metrics_of(found: list[dict], seed: int) -> dict:
    """A share a kind of word; with it, what the caption's other words put on the same objects, and the difference."""
    numbers = {image_id: number for number, image_id in enumerate(dict.fromkeys(one["image_id"] for one in found))}
    metrics = {"images": len(numbers), "class_token": float(np.mean([one["class_token"] for one in found]))}
    for kind in (CLASS, COLOR, ENDING, OTHER):
        some = [one for one in found if one["kind"] == kind and one["others"] is not None]
        if some:
            on_it, others, covered = (np.array([one[key] for one in some]) for key in ("mass", "others", "area"))
            images = np.array([numbers[one["image_id"]] for one in some])
            more = bootstrap_means(on_it - others, images, seed=seed)
            facts = {
                **asdict(compute_attention_share(on_it, covered, images, seed=seed)),
                "others": float(others.mean()),
            }
            facts |= dict(zip(("more_low", "more_high"), confidence_interval(more), strict=True))
            metrics |= {f"{kind}_{key}": value for key, value in facts.items()}
    return metrics


class About:
    """What the words of an image's caption are about, by all that its source tells."""

    def __init__(self, manifest: Manifest, embedded: bool):
        self.classes = manifest.classes
        self.objects = read_objects(Path(manifest.source)) if embedded else {}
        self.background = self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None

    def __call__(self, row: Row, words: list[Word]) -> list[Referent | None]:
        texts = [word.text for word in words]
        if row.image_id in self.objects:
            return referents_in_scene(texts, self.objects[row.image_id])
        present = set(np.unique(read_mask(Path(row.mask))).tolist())
        return referents_by_class_name(texts, self.classes, present)


def panels_of(words: list[Word], found: list[dict]) -> list[Panel]:
    """A panel a word; under what names an object, how much lies on it."""
    told = {one["place"]: f"\n{one['mass']:.0f} % on {one['area']:.0f} %" for one in found if one["kind"] != OTHER}
    return [Panel(word.text + told.get(place, "\n"), word.on_patches) for place, word in enumerate(words)]


def draw_caption(
    path: Path, image: Image.Image, name: str, words: list[Word], found: list[dict], asked: CaptionAttention
) -> None:
    """One picture: the image, then a panel a word, with what was `found` of it."""
    caption = " ".join(word.text for word in words if word.text != END)
    way = way_of(asked) + ("; below a word: its mass on its object, and that one's area" if found else "")
    draw_panels(path, image, "image\n", panels_of(words, found), f'{name}: "{caption}"\n{way}', shared=True)


def way_of(asked: CaptionAttention) -> str:
    """Which attention is shown."""
    layer = "last layer" if asked.layer == -1 else f"layer {asked.layer}"
    head = "mean of heads" if asked.head == "mean" else f"head {asked.head}"
    return f"cross attention of the decoder's {layer}, {head}"


def read_all(
    reader: Reader, table: FeatureTable, captioning: Captioning, cell: str
) -> Iterator[tuple[str, list[Word]]]:
    """Image ids with the words of the cell's captions."""
    prompt = reader.captioner.tokenizer(captioning.cells[cell].prompt, add_special_tokens=False).input_ids
    written = written_in(PREDICTIONS, cell)
    with tqdm(total=len(table), desc="look for words", unit="image", mininterval=1) as bar:
        for batch in table.batches(AT_ONCE):
            states = torch.stack([one.tokens for one in batch])
            told = [written[one.image_id] for one in batch]
            for one, words in zip(batch, reader.words(states, prompt, told, captioning.max_length), strict=True):
                yield one.image_id, words
            bar.update(len(batch))


def run(experiment: Experiment) -> Run:
    """Draw the named images, measure the whole split, write the record."""
    asked, manifest, captioner = experiment.attention.captions, manifests.read_manifest(), load_captioner(experiment)
    by_id = {row.image_id: row for row in manifest.split("val")}
    pictures = select_examples(
        manifest.split("val"), experiment.active.examples.captions, f"{experiment.profile}.examples.captions"
    )
    table = FeatureTable(DECODER_STATES / "val", backbone=captioner.source, manifest=manifests.manifest_hash())
    reader, about = Reader(captioner, asked), About(manifest, experiment.active.objects_annotated)
    found, drawn, folder = [], {}, PICTURES / TASK
    for image_id, words in read_all(reader, table, experiment.captioning, asked.cell):
        row = by_id[image_id]
        own = measured(row, words, about(row, words), about.background) if row.mask else []
        found += own
        if row in pictures:
            drawn[image_id] = folder / f"{image_id}.png"
            draw_caption(drawn[image_id], read_image(Path(row.image)), image_id, words, own, asked)
    shares = SHARES / TASK / "words.parquet"
    with atomic_write(shares) as beside:
        pq.write_table(pa.Table.from_pylist(found), beside, compression="zstd")
    made = Run(
        task=TASK,
        name=asked.cell,
        stage=TASK,
        params={
            "profile": experiment.profile,
            "seed": experiment.seed,
            "model": experiment.captioning.model,
            **asked.model_dump(),
        },
        metrics=metrics_of(found, experiment.seed_for(BOOTSTRAP)) if found else {},
        inputs={"source": manifest.source, **vars(table.metadata)},
        artifacts={"shares": str(shares), **{row.image_id: str(drawn[row.image_id]) for row in pictures}},
        versions=package_versions("torch", "transformers", "numpy", "pillow"),
    )
    write_run(made)
    return made


def main() -> None:
    experiment = load_experiment()
    folders = (PICTURES / TASK, SHARES / TASK, RUNS / TASK)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    reason = skip_reason(PREDICTIONS.parent)
    if reason:
        mark_skipped(reason, *folders)
        return
    run(experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
