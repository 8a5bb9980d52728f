"""Stage `caption`: decode every cell of `captioning.cells` from cached image states, and score it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.captioning import BOOTSTRAP, PREDICTIONS
from stages.captioning.bleu import ORDERS, bleu, bootstrap_bleu, count_ngrams
from stages.captioning.caption_job import CaptionJob, read_captions
from stages.captioning.captioner import caption_text, load_captioner
from stages.captioning.decoding import CaptionGenerator, Lengths, caption_tokens
from stages.core.atomic import atomic_write, remove_folders
from stages.core.bootstrap import confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import stage
from stages.data import manifest as manifests
from stages.data.manifest import Manifest, Row
from stages.data.scenes.annotations import read_objects
from stages.data.scenes.naming_accuracy import naming_accuracy
from stages.data.scenes.scene import SceneObject
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureTable
from stages.image_text import DECODER_STATES, REFERENCE_SEED
from stages.image_text.reference_caption import reference_index
from stages.models import vit
from stages.params.captioning import CellRun
from stages.params.experiment import Experiment, load_experiment

TASK = "captioning"
TokenIds = dict[CellRun, dict[str, list[int]]]  # of captions, by cell and seed, and by image ID


def decode(
    generator: CaptionGenerator, table: FeatureTable, prompts: dict[str, list[int]], experiment: Experiment
) -> tuple[TokenIds, Shards]:
    """Return the token IDs of all captions, and the shards that they were read from: delete these at the end.

    `prompts` has token IDs by prompt.
    """
    task = experiment.captioning
    # The states are read from a file that is mapped into memory: there is nothing for loading processes to do.
    compute = experiment.compute.model_copy(update={"workers": 0})
    metadata = {
        "states": table.metadata.as_text(),
        "decoder": vit.weights_hash(generator.decoder.model),
        "task": task.model_dump(mode="json"),
        "seed": experiment.seed,
    }
    keys = [(image_id, 0) for image_id in table.image_ids]
    shards = Shards(PREDICTIONS.parent / "shards", keys, metadata, location=compute.store)
    job = CaptionJob(generator, table, prompts, experiment)
    paths = extract_shards(job, shards, compute, "caption", unit="image")
    return read_captions(paths, task.runs), shards


@dataclass(frozen=True)
class CaptionScorer:
    """Scores captions of `rows` against `references`, one caption per row, and against all captions of the rows.

    `objects` are those of each image ID; empty for images that are not generated scenes.
    """

    rows: tuple[Row, ...]
    references: list[str]
    bootstrap_seed: int
    objects: dict[str, tuple[SceneObject, ...]]

    @property
    def image_ids(self) -> list[str]:
        return [row.image_id for row in self.rows]

    def bleu(self, captions: Sequence[str]) -> float:
        """BLEU-4 of captions, in the order of `rows`, in percent."""
        return bleu(count_ngrams(captions, [[reference] for reference in self.references]))

    def metrics(self, captions: Sequence[str]) -> dict[str, float]:
        """Metrics of one cell's captions, in the order of `rows`; scores are percentages."""
        counts = count_ngrams(captions, [[reference] for reference in self.references])
        low, high = confidence_interval(bootstrap_bleu(counts, seed=self.bootstrap_seed))
        return {
            "bleu": bleu(counts),
            "bleu_low": low,
            "bleu_high": high,
            **{f"bleu_{order}": bleu(counts, order) for order in range(1, ORDERS)},
            "bleu_all_references": bleu(count_ngrams(captions, [row.captions for row in self.rows])),
            **naming_accuracy(dict(zip(self.image_ids, captions, strict=True)), self.objects, self.rows[0].height),
            "words": float(np.mean([len(caption.split()) for caption in captions])),
            "distinct": len(set(captions)),
            "images": len(captions),
        }


def build_scorer(manifest: Manifest, experiment: Experiment) -> CaptionScorer:
    """The scorer of the validation split. Only generated scenes have known objects."""
    rows = manifest.split("val")
    seed = experiment.seed_for(REFERENCE_SEED)
    references = [row.captions[reference_index(row, seed)] for row in rows]
    objects = read_objects(Path(manifest.source))  # none unless the scenes are generated
    return CaptionScorer(rows, references, experiment.seed_for(BOOTSTRAP), objects)


def write_captions(scorer: CaptionScorer, captions: dict[CellRun, list[str]], tokens: TokenIds) -> None:
    """Write all captions: one row per `cell`, `seed` and `image_id`.

    `seed` is null for cells that do not sample. The other columns are `caption`, its `tokens`, which include end tokens
    only if `captioning.stop` is `batch`, and the BLEU `reference`.
    """
    image_ids = scorer.image_ids
    columns = {
        "cell": [name for name, _ in captions for _ in image_ids],
        "seed": pa.array([seed for _, seed in captions for _ in image_ids], pa.int64()),
        "image_id": image_ids * len(captions),
        "caption": [caption for run_captions in captions.values() for caption in run_captions],
        "tokens": [tokens[run][image_id] for run in captions for image_id in image_ids],
        "reference": scorer.references * len(captions),
    }
    with atomic_write(PREDICTIONS) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def run_cells(experiment: Experiment) -> None:
    """Decode all cells; write the captions and one run record per cell and seed."""
    task = experiment.captioning
    manifest = manifests.read_manifest()
    captioner = load_captioner(experiment, task.model)
    table = FeatureTable(DECODER_STATES / "val", backbone=captioner.source, manifest=manifests.manifest_hash())
    prompts = captioner.prompts(task)
    generator = CaptionGenerator(captioner.decoder, Lengths(task.min_length, task.max_length), task.stop)
    tokens, shards = decode(generator, table, prompts, experiment)
    scorer = build_scorer(manifest, experiment)
    captions = {}
    metrics = {}
    for (name, seed), run_tokens in tokens.items():
        prompt = prompts[task.cells[name].prompt]
        sequences = [run_tokens[image_id] for image_id in scorer.image_ids]
        texts = [caption_text(captioner.tokenizer, prompt, sequence) for sequence in sequences]
        captions[name, seed] = texts
        metrics[name, seed] = scorer.metrics(texts)
        if task.stop == "batch":
            # The same captions, each cut at its end token: the difference is what running on is worth.
            cut = [caption_tokens(sequence, 0, captioner.decoder.end) for sequence in sequences]
            texts = [caption_text(captioner.tokenizer, prompt, sequence) for sequence in cut]
            metrics[name, seed]["bleu_end_token"] = scorer.bleu(texts)
    write_captions(scorer, captions, tokens)
    for name, seed in task.runs:
        params = {
            "profile": experiment.profile,
            "base_seed": experiment.seed,
            **({} if seed is None else {"seed": seed}),
            "model": task.model,
            "min_length": task.min_length,
            "max_length": task.max_length,
            "stop": task.stop,
            **task.cells[name].model_dump(exclude_none=True),
        }
        run = Run(
            task=TASK,
            name=name,
            seed=seed,
            stage="caption",
            params=params,
            metrics=metrics[name, seed],
            inputs={"source": manifest.source, **vars(table.metadata)},
            artifacts={"predictions": str(PREDICTIONS)},
            versions=package_versions("torch", "transformers", "nltk", "numpy"),
        )
        write_run(run)
    shards.delete()  # now there is nothing left to resume


def main() -> None:
    experiment = load_experiment()
    remove_folders(RUNS / TASK, PREDICTIONS.parent)
    reason = skip_reason(DECODER_STATES)
    if reason:
        mark_skipped(reason, RUNS / TASK, PREDICTIONS.parent)
    else:
        run_cells(experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage("caption"):
        main()
