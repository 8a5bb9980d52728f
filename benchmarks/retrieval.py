"""Time all retrieval runs of Tables 4 and 5: training without a cache (baseline) against training on cached states.

    python -m benchmarks.retrieval

The baseline trains one run after another. Every batch's augmented images and captions go through both frozen towers,
and in every epoch so do all validation images and captions. Ours encodes `views` views of each training image, the
validation images and all captions once, then trains the runs of a table side by side and evaluates every epoch. Both
have the same seeds, orders, loss, optimizer and schedule, and the same views up to epoch V, so both reach the same
recall up to float16 rounding of the cached states. Hooks count what the towers encode. Image states go through files,
caption states do not.

First, training alone is timed, without towers or evaluation, at full size on random states of the same width: runs side
by side against the same runs one after another, by the same function; and every row with all of `retrieval.seeds` side
by side. All else has the first seed only.

Prints seconds, ratios, encoded images and captions, the ratio they would allow, and whether R@1 is the same.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.segmentation import COMPUTE, clocked, make_scenes
from stages.data.dataset import MappedDataset
from stages.data.manifest import Row
from stages.features.extraction import extract_shards
from stages.features.shards import RowKey, Shards
from stages.features.vectors import Vectors, concat_vectors
from stages.image_text import REFERENCE_SEED
from stages.image_text.pixels import train_dataset, val_dataset
from stages.image_text.reference_caption import reference_index
from stages.image_text.retrieval_vectors import TEXTS, ViewVectorsJob, encode_captions
from stages.image_text.towers import Towers, load_towers
from stages.params.experiment import Experiment, load_experiment
from stages.retrieval.dataset import ValPairs
from stages.retrieval.projections import Projections
from stages.retrieval.training import ProjectionTraining, TrainPairs, contrastive_loss, train

VAL_BATCH = 32  # images, as in the pipeline
FULL_SIZE = (1464, 1449)  # training and validation images of VOC 2012
NOISE = 3.0  # of random captions, in standard deviations of the image states: recall is then neither 0 nor 100 %

Rows = dict[str, tuple[Row, ...]]  # by split
Tables = list[list[ProjectionTraining]]  # the trained runs of Table 4, then those of Table 5
Recalls = dict[str, float]  # R@1 from image to caption, in percent, by run


def new_tables(experiment: Experiment, towers: Towers, seeds: int = 1) -> Tables:
    """The runs of both tables before their first step, with the first `seeds` of `retrieval.seeds`."""
    task = experiment.retrieval
    table4 = {name: row for name, row in task.table4.items() if row is not None}
    tables = []
    for table, rows in (("retrieval", table4), ("retrieval_grid", task.grid)):
        trainings = []
        for name, row in rows.items():
            for seed in task.seeds[:seeds]:
                run_seed = experiment.seed_for(f"{table}/{name}", seed)
                scratch = row.init == "scratch"
                projections = random_projections(towers, run_seed) if scratch else provided_projections(towers)
                trainings.append(ProjectionTraining(name, row, run_seed, projections))
        tables.append(trainings)
    return tables


def random_projections(towers: Towers, seed: int) -> Projections:
    """Randomly initialized projections of BLIP's shape."""
    vision = towers.model.vision_proj
    text = towers.model.text_proj
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projections(vision.in_features, text.in_features, vision.out_features).to(towers.device)


def provided_projections(towers: Towers) -> Projections:
    """A copy of BLIP's own projections."""
    projections = random_projections(towers, seed=0)
    projections.vision_proj.load_state_dict(towers.model.vision_proj.state_dict())
    projections.text_proj.load_state_dict(towers.model.text_proj.state_dict())
    return projections


def reference_captions(rows: tuple[Row, ...], experiment: Experiment) -> list[str]:
    """The reference caption of each row."""
    seed = experiment.seed_for(REFERENCE_SEED)
    return [row.captions[reference_index(row, seed)] for row in rows]


def run_baseline(towers: Towers, rows: Rows, experiment: Experiment) -> Recalls:
    """One run after another, through both towers."""
    dataset = val_dataset(rows["val"], towers.pixels.side)
    loader = DataLoader(dataset, VAL_BATCH, num_workers=COMPUTE.workers, persistent_workers=True)

    def evaluate(projections: Projections) -> dict[str, float]:
        """Metrics from pixels and words."""
        captions = reference_captions(rows["val"], experiment)
        images = torch.cat([towers.image_states(pixels)[:, 0] for _, pixels in loader])
        batches = [captions[first : first + TEXTS] for first in range(0, len(captions), TEXTS)]
        texts = torch.cat([towers.text_states(batch) for batch in batches])
        return ValPairs([row.image_id for row in rows["val"]], captions, images, texts).metrics(projections)

    tables = new_tables(experiment, towers)
    provided_metrics = evaluate(provided_projections(towers))
    for training in flatten(tables):
        train_baseline(towers, training, rows["train"], evaluate, experiment)
    return recalls(tables, provided_metrics)


def train_baseline(
    towers: Towers,
    training: ProjectionTraining,
    rows: tuple[Row, ...],
    evaluate: Callable[[Projections], dict[str, float]],
    experiment: Experiment,
) -> None:
    """Train without a cache. One pool of loading workers serves all epochs."""
    params = training.params
    captions = reference_captions(rows, experiment)
    steps = len(rows) // params.batch_size
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW(
        training.projections.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=params.epochs * steps)
    seeds = []  # of the views: one per image and epoch, epoch by epoch
    indices = []  # of the views in the order of training
    for epoch in range(params.epochs):
        seeds += [experiment.seed_for(f"retrieval/view/{epoch}/{row.image_id}") for row in rows]
        order = torch.randperm(len(rows), generator=generator)[: steps * params.batch_size]
        indices.append(epoch * len(rows) + order)
    batches = torch.cat(indices).view(-1, params.batch_size).tolist()
    probability = experiment.retrieval.augment_probability
    dataset = train_dataset(rows * params.epochs, towers.pixels.side, seeds, probability)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=COMPUTE.workers, persistent_workers=True)
    temperature = torch.tensor(params.temperature, device=towers.device)
    losses = []
    for step, (view_indices, pixels) in enumerate(loader, 1):
        # Clones, as autograd cannot save tensors of inference mode.
        image_states = towers.image_states(pixels)[:, 0].clone()
        texts = [captions[index % len(rows)] for index in view_indices.tolist()]
        text_states = towers.text_states(texts).clone()
        images = training.projections.images(image_states)[None]
        loss = contrastive_loss(images, training.projections.texts(text_states)[None], temperature).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % steps == 0:
            train_loss = torch.stack(losses).mean().item()
            metrics = evaluate(training.projections)
            training.history.append({"epoch": step // steps, "train_loss": train_loss, **metrics})
            losses = []


def run_ours(towers: Towers, rows: Rows, experiment: Experiment, views: int, seconds: dict[str, float]) -> Recalls:
    """The pipeline's functions; adds seconds by part."""
    with clocked(seconds, "encode"):
        pairs, val = encode(towers, rows, experiment, views)
    with clocked(seconds, "train"):
        tables = new_tables(experiment, towers)
        for trainings in tables:
            train(trainings, pairs, val.metrics)
        return recalls(tables, val.metrics(provided_projections(towers)))


def encode_views(towers: Towers, dataset: MappedDataset, keys: list[RowKey], folder: Path) -> Vectors:
    """The vectors of all views of `dataset`, through shards in `folder`."""
    shards = Shards(Path(f"{len(keys)}_views"), keys, {}, waiting=folder)
    paths = extract_shards(ViewVectorsJob(towers, dataset, keys, {}), shards, towers.compute, "encode")
    return concat_vectors(paths)


def encode(towers: Towers, rows: Rows, experiment: Experiment, views: int) -> tuple[TrainPairs, ValPairs]:
    """The states that `encode_image_text` writes and `RetrievalData` reads."""
    side = towers.pixels.side
    train_rows = rows["train"] * views
    train_ids = [row.image_id for row in train_rows]
    val_ids = [row.image_id for row in rows["val"]]
    view_indices = [view for view in range(views) for _ in rows["train"]]
    seeds = []
    for row, view in zip(train_rows, view_indices, strict=True):
        seeds.append(experiment.seed_for(f"retrieval/view/{view}/{row.image_id}"))
    with tempfile.TemporaryDirectory() as name:
        dataset = train_dataset(train_rows, side, seeds, experiment.retrieval.augment_probability)
        train_vectors = encode_views(towers, dataset, list(zip(train_ids, view_indices, strict=True)), Path(name))
        train_states = train_vectors.values.float().to(towers.device)
        val_keys = [(image_id, 0) for image_id in val_ids]
        val_vectors = encode_views(towers, val_dataset(rows["val"], side), val_keys, Path(name))
        val_states = val_vectors.values.float()
    captions = encode_captions(towers, rows["train"] + rows["val"], {})
    caption_keys = zip(captions.image_ids, captions.indices, strict=True)
    caption_index = {key: index for index, key in enumerate(caption_keys)}
    seed = experiment.seed_for(REFERENCE_SEED)
    texts = {}
    for split, split_rows in rows.items():
        indices = [caption_index[row.image_id, reference_index(row, seed)] for row in split_rows]
        texts[split] = captions.values[indices].float().to(towers.device)
    val_captions = reference_captions(rows["val"], experiment)
    return (
        TrainPairs(train_states.unflatten(0, (views, -1)), texts["train"]),
        ValPairs(val_ids, val_captions, val_states.to(towers.device), texts["val"]),
    )


@contextmanager
def count_inputs(towers: Towers) -> Iterator[Counter]:
    """Count the images and captions that the towers encode."""
    counts: Counter = Counter()

    def count_as(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda _module, _args, states: counts.update({name: len(states)})

    hooks = [
        towers.model.vision_model.embeddings.register_forward_hook(count_as("images")),
        towers.model.text_encoder.embeddings.register_forward_hook(count_as("captions")),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def random_states(towers: Towers, views: int) -> tuple[TrainPairs, ValPairs]:
    """Random image states at full size; a caption's state is its image's, rotated and blurred."""
    train_images, val_images = FULL_SIZE
    generator = torch.Generator().manual_seed(0)
    image_dim = towers.model.vision_proj.in_features
    text_dim = towers.model.text_proj.in_features
    rotation = torch.randn(image_dim, text_dim, generator=generator) / image_dim**0.5
    images = torch.randn(train_images + val_images, image_dim, generator=generator)
    texts = images @ rotation + NOISE * torch.randn(len(images), text_dim, generator=generator)
    noise = torch.randn(views, train_images, image_dim, generator=generator)
    train_views = images[:train_images] + 0.3 * noise
    images, texts, train_views = (tensor.to(towers.device) for tensor in (images, texts, train_views))
    val_ids = [str(index) for index in range(val_images)]
    pairs = TrainPairs(train_views, texts[:train_images])
    return pairs, ValPairs(val_ids, [], images[train_images:], texts[train_images:])


def compare_stacked_training(towers: Towers, experiment: Experiment) -> None:
    """Time training alone: the runs of a table side by side, and one after another."""
    pairs, val = random_states(towers, experiment.retrieval.views)
    seconds: dict[str, float] = {}
    for trainings in new_tables(experiment, towers):  # warm up with one epoch each
        one_epoch = {"epochs": 1}
        short = [replace(run, params=run.params.model_copy(update=one_epoch)) for run in trainings]
        train(short, pairs, skip_evaluation)
    stacked = new_tables(experiment, towers)
    with clocked(seconds, "stacked"):
        for trainings in stacked:
            train(trainings, pairs, skip_evaluation)
    alone = new_tables(experiment, towers)
    with clocked(seconds, "alone"):
        for training in flatten(alone):
            train([training], pairs, skip_evaluation)
    seeds = len(experiment.retrieval.seeds)
    repeated = new_tables(experiment, towers, seeds)
    with clocked(seconds, "repeated"):
        for trainings in repeated:
            train(trainings, pairs, skip_evaluation)
    runs = list(zip(flatten(stacked), flatten(alone), strict=True))
    with clocked(seconds, "evaluation"):
        metrics = [(val.metrics(ours.projections), val.metrics(single.projections)) for ours, single in runs]
    equal = sum(ours["image_to_text_r_at_1"] == single["image_to_text_r_at_1"] for ours, single in metrics)
    best = max(ours["image_to_text_r_at_1"] for ours, _ in metrics)
    difference = max(weight_difference(ours.projections, single.projections) for ours, single in runs)
    epochs = sum(training.params.epochs for training in flatten(stacked))
    evaluation = seconds["evaluation"] * epochs / (2 * len(runs))
    print(f"training alone, {len(pairs)} pairs of {pairs.images.shape[-1]} features, {len(runs)} runs, {epochs} epochs")
    print(f"one by one    {seconds['alone']:8.1f} s")
    print(
        f"stacked       {seconds['stacked']:8.1f} s   ratio {seconds['alone'] / seconds['stacked']:.1f}; "
        f"evaluating every epoch would add {evaluation:.1f} s to both"
    )
    factor = seconds["repeated"] / seconds["stacked"]
    print(f"{seeds} seeds       {seconds['repeated']:8.1f} s   stacked, {factor:.1f} times one seed")
    print(
        f"              R@1 is the same in {equal} of {len(runs)} runs (the best: {best:.1f} %); "
        + (f"weights differ by at most {difference:.1e}" if difference else "weights are the same bit for bit")
    )


def skip_evaluation(_projections: Projections) -> dict[str, float]:
    return {}


def weight_difference(first: Projections, second: Projections) -> float:
    """The largest absolute difference of any weight."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max((weight - other).abs().max().item() for weight, other in pairs)


def flatten(tables: Tables) -> list[ProjectionTraining]:
    return [training for trainings in tables for training in trainings]


def recalls(tables: Tables, provided_metrics: dict[str, float]) -> Recalls:
    """R@1 of the provided projections, and of every run after its last epoch."""
    trained = {training.name: training.history[-1]["image_to_text_r_at_1"] for training in flatten(tables)}
    return {"provided": provided_metrics["image_to_text_r_at_1"], **trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=96, help="training images")
    parser.add_argument("--val", type=int, default=96, help="validation images")
    parser.add_argument("--views", type=int, nargs="+", default=[8, 4])
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    experiment = load_experiment()
    source = experiment.embedded.blip
    towers = load_towers(source, COMPUTE)
    compare_stacked_training(towers, experiment)
    with tempfile.TemporaryDirectory() as name:
        side = towers.pixels.side
        rows = make_scenes(Path(name), arguments.train, arguments.val, side)
        few_rows = {split: split_rows[:16] for split, split_rows in rows.items()}
        run_ours(towers, few_rows, experiment, 1, {})  # imports on first use are not timed
        seconds: dict[str, float] = {}
        with count_inputs(towers) as counts, clocked(seconds, "baseline"):
            baseline = run_baseline(towers, rows, experiment)
        print(f"{arguments.train} + {arguments.val} images of {side}x{side}, {len(baseline)} runs")
        print(f"baseline      {seconds['baseline']:8.1f} s   {describe(counts)}", flush=True)
        for views in arguments.views:
            parts: dict[str, float] = {}
            with count_inputs(towers) as our_counts:
                ours = run_ours(towers, rows, experiment, views, parts)
            print_result(views, seconds["baseline"], parts, counts, our_counts)
            print_recalls(baseline, ours)


def describe(counts: Counter) -> str:
    return f"{counts['images']} images and {counts['captions']} captions encoded"


def print_result(views: int, baseline: float, parts: dict[str, float], counts: Counter, our_counts: Counter) -> None:
    total = sum(parts.values())
    ratio = baseline / total
    bound = counts["images"] / our_counts["images"]
    print(
        f"cached, V={views:<3} {total:8.1f} s   {describe(our_counts)}; encoding {parts['encode']:.1f} s, "
        f"training and evaluation {parts['train']:.1f} s"
    )
    print(f"              ratio {ratio:.1f}; bound by encoded images {bound:.1f}; {ratio / bound:.0%} of it")


def print_recalls(baseline: Recalls, ours: Recalls) -> None:
    differences = {name: ours[name] - baseline[name] for name in baseline if ours[name] != baseline[name]}
    details = ", ".join(f"{name} {difference:+.1f}" for name, difference in differences.items())
    print(
        f"              R@1 equals the baseline's in {len(baseline) - len(differences)} of {len(baseline)} runs"
        + (f"; differences in points: {details}" if differences else "")
    )


if __name__ == "__main__":
    main()
