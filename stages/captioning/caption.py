"""Stage `caption`: decode every cell of `captioning.cells` from cached hidden states, and score it."""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stages.captioning import BOOTSTRAP, PREDICTIONS
from stages.captioning.bleu import ORDERS, bleu, bootstrap_bleu, count_ngrams
from stages.captioning.captioner import load_captioner
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.naming_accuracy import naming_accuracy
from stages.core.atomic import atomic_write
from stages.core.bootstrap import confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.manifest import Manifest, Row
from stages.data.scenes.annotations import read_objects
from stages.data.scenes.scene import SceneObject
from stages.features.tokens import FeatureTable
from stages.image_text import DECODER_STATES, REFERENCE_SEED
from stages.image_text.reference_caption import reference_index
from stages.models.compute import get_device
from stages.params.captioning import Cell
from stages.params.experiment import Experiment, load_experiment

TASK = "captioning"
IMAGES = 64  # in a batch, each with all cells whose prompts are of one length


def decode(
    decoder: CaptionGenerator,
    table: FeatureTable,
    cells: dict[str, Cell],
    ids: dict[str, list[int]],
    experiment: Experiment,
) -> dict[str, dict[str, list[int]]]:
    """Token ids by cell and image id. All greedy and sampling cells whose prompts are of one length share batches."""
    found: dict[str, dict[str, list[int]]] = {name: {} for name in cells}
    seeds = {name: experiment.seed_for(f"captioning/{name}") for name in cells}
    with tqdm(total=len(table) * len(cells), desc="caption", unit="caption", mininterval=1) as bar:
        for batch in table.batches(IMAGES):
            image_ids, states = [one.image_id for one in batch], torch.stack([one.tokens for one in batch])
            states = states.to(get_device()).float()
            for names in _alike(cells, ids):
                streams = np.stack([[_stream(seeds[name], one, decoder) for name in names] for one in image_ids])
                asked = [cells[name] for name in names]
                texts = decoder.sample(states, [ids[cell.prompt] for cell in asked], asked, streams)
                for number, text in enumerate(texts):
                    found[names[number % len(names)]][image_ids[number // len(names)]] = text
                bar.update(len(texts))
            for name, cell in cells.items():
                if cell.type == "beam":
                    texts = decoder.beam_search(states, ids[cell.prompt], cell.beams)
                    found[name] |= dict(zip(image_ids, texts, strict=True))
                    bar.update(len(texts))
    return found


def _alike(cells: dict[str, Cell], ids: dict[str, list[int]]) -> list[list[str]]:
    """Names of greedy and sampling cells, those with prompts of one length together."""
    alike: dict[int, list[str]] = {}
    for name, cell in cells.items():
        if cell.type != "beam":
            alike.setdefault(len(ids[cell.prompt]), []).append(name)
    return list(alike.values())


def _stream(seed: int, image_id: str, decoder: CaptionGenerator) -> np.ndarray:
    """The random numbers of one cell's one image."""
    return np.random.default_rng([seed, *image_id.encode()]).random(decoder.lengths.longest)


@dataclass(frozen=True)
class Judge:
    """What captions are held against: every image's references, the one drawn for it, and what it shows."""

    rows: tuple[Row, ...]
    drawn: list[str]
    seed: int
    things: dict[str, tuple[SceneObject, ...]]

    def metrics(self, texts: Sequence[str]) -> dict[str, float]:
        """Of one cell's captions, in the order of `rows`; percentages."""
        single = count_ngrams(texts, [[one] for one in self.drawn])
        low, high = confidence_interval(bootstrap_bleu(single, seed=self.seed))
        return {
            "bleu": bleu(single),
            "bleu_low": low,
            "bleu_high": high,
            **{f"bleu_{order}": bleu(single, order) for order in range(1, ORDERS)},
            "bleu_all_references": bleu(count_ngrams(texts, [row.captions for row in self.rows])),
            **naming_accuracy(dict(zip([row.image_id for row in self.rows], texts, strict=True)), self.objects),
            "words": float(np.mean([len(text.split()) for text in texts])),
            "distinct": len(set(texts)),
            "images": len(texts),
        }


def judge_of(manifest: Manifest, experiment: Experiment) -> Judge:
    """The validation split's judge. What an image shows is known of generated scenes alone."""
    things = read_objects(Path(manifest.source)) if experiment.active.objects_annotated else {}
    rows = manifest.split("val")
    seed = experiment.seed_for(REFERENCE_SEED)
    drawn = [row.captions[reference_index(row, seed)] for row in rows]
    return Judge(rows, drawn, experiment.seed_for(BOOTSTRAP), things)


def write_captions(judge: Judge, captions: dict[str, list[str]], found: dict[str, dict[str, list[int]]]) -> None:
    """All captions: `cell`, `image_id`, `caption`, its `tokens`, and the `reference` that BLEU held it against."""
    image_ids = [row.image_id for row in judge.rows]
    columns = {
        "cell": [name for name in captions for _ in image_ids],
        "image_id": image_ids * len(captions),
        "caption": [text for texts in captions.values() for text in texts],
        "tokens": [found[name][image_id] for name in captions for image_id in image_ids],
        "reference": judge.drawn * len(captions),
    }
    with atomic_write(PREDICTIONS) as beside:
        pq.write_table(pa.table(columns), beside, compression="zstd")


def run_cells(experiment: Experiment) -> list[Run]:
    """Decode all cells, write captions and a record each."""
    task, manifest, captioner = experiment.captioning, manifests.read_manifest(), load_captioner(experiment)
    table = FeatureTable(DECODER_STATES / "val", backbone=captioner.source, manifest=manifests.manifest_hash())
    ids = captioner.prompts(task)
    decoder = CaptionGenerator(captioner.decoder, Lengths(task.min_length, task.max_length))
    found, judge = decode(decoder, table, task.cells, ids, experiment), judge_of(manifest, experiment)
    captions = {
        name: [captioner.tokenizer.decode(texts[row.image_id], skip_special_tokens=True) for row in judge.rows]
        for name, texts in found.items()
    }
    write_captions(judge, captions, found)
    runs = []
    for name, cell in task.cells.items():
        asked = {
            "model": task.model,
            "min_length": task.min_length,
            "max_length": task.max_length,
            **cell.model_dump(exclude_none=True),
        }
        run = Run(
            task=TASK,
            name=name,
            stage="caption",
            params={"profile": experiment.profile, "seed": experiment.seed, **asked},
            metrics=judge.metrics(captions[name]),
            inputs={"source": manifest.source, **vars(table.metadata)},
            artifacts={"predictions": str(PREDICTIONS)},
            versions=package_versions("torch", "transformers", "nltk", "numpy"),
        )
        write_run(run)
        runs.append(run)
    return runs


def main() -> None:
    experiment = load_experiment()
    for folder in (RUNS / TASK, PREDICTIONS.parent):
        shutil.rmtree(folder, ignore_errors=True)  # what belongs to cells that are gone
    reason = skip_reason(DECODER_STATES)
    if reason:
        mark_skipped(reason, RUNS / TASK, PREDICTIONS.parent)
        return
    run_cells(experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("caption"):
        main()
