"""Retrieval runs of Tables 4 and 5: train projections, then write weights, predictions and records."""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.core.atomic import atomic_write, remove_folders
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.live import LiveRun, record_live
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.image_text import RETRIEVAL_VECTORS
from stages.params.experiment import Experiment, load_experiment
from stages.params.retrieval import GridRow
from stages.retrieval import BOOTSTRAP, PREDICTIONS, RECALL, WEIGHTS
from stages.retrieval.dataset import RetrievalData, recall_metrics
from stages.retrieval.projections import Projections, save_projections
from stages.retrieval.training import DivergedError, ProjectionTraining, train

INPUTS = ("backbone", "weights", "transform", "manifest", "unknown_share", "unknown_words")  # of the vectors' metadata


def train_and_record(task: str, stage: str, rows: Mapping[str, GridRow | None]) -> None:
    """Train every row of a table from cached states with each of `retrieval.seeds`, and record every run.

    A row of None stands for BLIP's own projections: one run, without a seed. `task` names the folders of records,
    weights and predictions, which are emptied first.
    """
    experiment = load_experiment()
    folders = (RUNS / task, WEIGHTS / task, PREDICTIONS / task)
    remove_folders(*folders)
    reason = skip_reason(RETRIEVAL_VECTORS)
    if reason:
        mark_skipped(reason, *folders)
        return
    with record_live(stage, experiment.compute.live) as recorder:
        data = RetrievalData(experiment, manifests.read_manifest())
        runs = _new_runs(task, stage, rows, data, experiment)
        live_runs = {(run.name, run.seed): recorder.open(run) for run in runs}
        trainings = _train_rows(task, stage, rows, live_runs, data, experiment)
        for run in runs:
            if run.seed is None:
                _evaluate_and_write(run, data.provided_projections(), data, experiment)
            else:
                training = trainings[run.name, run.seed]
                _evaluate_and_write(replace(run, history=training.history), training.projections, data, experiment)
            live_runs[run.name, run.seed].finish()


def _new_runs(
    task: str, stage: str, rows: Mapping[str, GridRow | None], data: RetrievalData, experiment: Experiment
) -> list[Run]:
    """The runs of all rows, in order, before they are trained."""
    params = {
        "profile": experiment.profile,
        "base_seed": experiment.seed,
        "views": experiment.retrieval.views,
        "augment_probability": experiment.retrieval.augment_probability,
    }
    inputs = {key: data.metadata[key] for key in INPUTS}
    versions = package_versions("torch", "transformers", "torchvision", "numpy", "pillow")
    runs = []
    for name, row in rows.items():
        if row is None:
            run_params = params | {"init": "provided"}
            runs.append(Run(task, name, stage, run_params, metrics={}, inputs=inputs, versions=versions))
            continue
        for seed in experiment.retrieval.seeds:
            run_params = params | {"seed": seed} | row.model_dump()
            runs.append(Run(task, name, stage, run_params, metrics={}, inputs=inputs, versions=versions, seed=seed))
    return runs


def _evaluate_and_write(run: Run, projections: Projections, data: RetrievalData, experiment: Experiment) -> None:
    """Write weights, predictions and the record of a run, with its metrics and the paths of both files."""
    weights_path = WEIGHTS / run.task / f"{run.key}.safetensors"
    save_projections(weights_path, projections)
    ranks = data.val.ranks(projections)
    columns = {
        "image_id": data.val.image_ids,
        "caption": data.val.captions,
        "image_to_text_rank": ranks["image_to_text"],
        "text_to_image_rank": ranks["text_to_image"],
        "nearest": data.val.nearest_images(projections),
    }
    predictions_path = PREDICTIONS / run.task / f"{run.key}.parquet"
    with atomic_write(predictions_path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    hits = (ranks["image_to_text"] == 1) * 100.0  # their mean is R@1 in percent
    low, high = confidence_interval(bootstrap_means(hits, seed=experiment.seed_for(BOOTSTRAP)))
    interval = {f"{RECALL}_low": low, f"{RECALL}_high": high}
    run = replace(
        run,
        metrics={**recall_metrics(ranks), **interval, "gallery": len(hits)},
        artifacts={"weights": str(weights_path), "predictions": str(predictions_path)},
    )
    write_run(run)


def _train_rows(
    task: str,
    stage: str,
    rows: Mapping[str, GridRow | None],
    live_runs: Mapping[tuple[str, int | None], LiveRun],
    data: RetrievalData,
    experiment: Experiment,
) -> dict[tuple[str, int], ProjectionTraining]:
    """Finished trainings by name and seed, all trained side by side.

    Raises `InputError` naming the params of a row that cannot run or diverges.
    """
    trainings = {}
    for name, row in rows.items():
        if row is None:
            continue
        if row.batch_size > len(data.pairs):
            limit = f"at most {len(data.pairs)}, the training images"
            raise InputError(f"{params_key(task, name)}.batch_size = {row.batch_size}: {limit}")
        for seed in experiment.retrieval.seeds:
            run_seed = experiment.seed_for(f"{task}/{name}", seed)
            projections = data.random_projections(run_seed) if row.init == "scratch" else data.provided_projections()
            trainings[name, seed] = ProjectionTraining(name, row, run_seed, projections, live_runs[name, seed])
    epochs = sum(training.params.epochs for training in trainings.values())
    with tqdm(total=epochs, desc=stage, unit="epoch", mininterval=1) as progress:
        try:
            train(list(trainings.values()), data.pairs, data.val.metrics, progress)
        except DivergedError as error:
            name, epoch = error.args
            params = trainings[name, experiment.retrieval.seeds[0]].params
            raise InputError(
                f"{params_key(task, name)}: training diverged in epoch {epoch}; lr = {params.lr:g}, "
                f"temperature = {params.temperature:g}: choose a smaller lr or a larger temperature"
            ) from error
        except ValueError as error:  # finite weights whose embeddings are not
            raise InputError(f"{task}: {error}") from error
    return trainings


def params_key(task: str, name: str) -> str:
    """The key of a run's params in `params.yaml`."""
    if task == "retrieval_grid":
        return f"retrieval.grid.{name}"
    return "retrieval.finetune" if name == "finetuned" else "retrieval"
