"""Trained and provided projections as runs: what Table 4 and Table 5 are made of."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.core.atomic import atomic_write
from stages.core.bootstrap import bootstrap_means, confidence_interval
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.skipped import mark_skipped, skip_reason
from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.image_text import RETRIEVAL_VECTORS
from stages.params.experiment import Experiment, load_experiment
from stages.params.retrieval import GridRow
from stages.retrieval import BOOTSTRAP, PREDICTIONS, WEIGHTS
from stages.retrieval.dataset import RetrievalData
from stages.retrieval.projections import save_projections
from stages.retrieval.training import DivergedError, ProjectionTraining, train

FACTS = ("backbone", "weights", "transform", "manifest", "unknown_share", "unknown_words")


def train_and_record(task: str, stage: str, asked: dict[str, GridRow | None]) -> None:
    """Train all rows of `asked` from the cached states and leave their records; None stands for the provided ones.

    `task` names the folders of records, weights and predictions, which are made anew.
    """
    experiment = load_experiment()
    folders = (RUNS / task, WEIGHTS / task, PREDICTIONS / task)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # rows that are gone leave nothing behind
    reason = skip_reason(RETRIEVAL_VECTORS)
    if reason:
        mark_skipped(reason, *folders)
        return
    cached = RetrievalData(experiment, manifests.read_manifest())
    trainings = [_training(task, name, row, cached, experiment) for name, row in asked.items()]
    taught = [one for one in trainings if asked[one.name]]
    with tqdm(total=sum(one.recipe.epochs for one in taught), desc=stage, unit="epoch", mininterval=1) as bar:
        try:
            train(taught, cached.pairs, cached.val.metrics, bar)
        except (DivergedError, ValueError) as fault:
            raise InputError(_diverged(task, fault, asked)) from fault
    for one in trainings:
        _record(task, stage, one, asked[one.name], cached, experiment)


def _diverged(task: str, fault: Exception, asked: dict[str, GridRow | None]) -> str:
    """Which row's numbers made a training end in nothing."""
    if not isinstance(fault, DivergedError):
        return f"{task}: {fault}"
    name, epoch = fault.args
    row = asked[name]
    return (
        f"{stage_key(task, name)}: training diverged in epoch {epoch}; "
        f"lr = {row.lr:g}, temperature = {row.temperature:g}: choose a smaller lr or a larger temperature"
    )


def _training(
    task: str, name: str, row: GridRow | None, cached: RetrievalData, experiment: Experiment
) -> ProjectionTraining:
    if row and row.batch_size > len(cached.pairs):
        most = f"at most {len(cached.pairs)}, the training images"
        raise InputError(f"{stage_key(task, name)}.batch_size = {row.batch_size}: {most}")
    seed = experiment.seed_for(f"{task}/{name}")
    scratch = row is not None and row.init == "scratch"
    return ProjectionTraining(name, row, seed, cached.fresh(seed) if scratch else cached.provided(), [])


def stage_key(task: str, name: str) -> str:
    """Where a row's numbers stand in `params.yaml`."""
    if task == "retrieval_grid":
        return f"retrieval.grid.{name}"
    return "retrieval.finetune" if name == "finetuned" else "retrieval"


def _record(
    task: str, stage: str, one: ProjectionTraining, row: GridRow | None, cached: RetrievalData, experiment: Experiment
) -> Run:
    """Write a row's weights, predictions and record."""
    weights_path = WEIGHTS / task / f"{one.name}.safetensors"
    predictions = PREDICTIONS / task / f"{one.name}.parquet"
    save_projections(weights_path, one.projections)
    ranked = cached.val.ranked(one.projections)
    columns = {"image_id": cached.val.image_ids, "caption": cached.val.captions}
    columns |= {f"{direction}_rank": found for direction, found in ranked.items()}
    with atomic_write(predictions) as beside:
        pq.write_table(pa.table({**columns, "nearest": cached.val.nearest_images(one.projections)}), beside)
    hits = (ranked["image_to_text"] == 1) * 100.0
    low, high = confidence_interval(bootstrap_means(hits, seed=experiment.seed_for(BOOTSTRAP)))
    run = Run(
        task=task,
        name=one.name,
        stage=stage,
        params={"profile": experiment.profile, "seed": experiment.seed, "views": experiment.retrieval.views}
        | (row.model_dump() if row else {"init": "provided"}),
        metrics={
            **cached.val.metrics(one.projections),
            "image_to_text_r_at_1_low": low,
            "image_to_text_r_at_1_high": high,
            "gallery": len(hits),
        },
        history=one.history,
        inputs={key: cached.metadata[key] for key in FACTS},
        artifacts={"weights": str(weights_path), "predictions": str(predictions)},
        versions=package_versions("torch", "transformers", "torchvision", "numpy", "pillow"),
    )
    write_run(run)
    return run
