"""All retrieval runs of Tables 4 and 5 the usual way against ours, in one run on the same data.

    python -m benchmarks.retrieval

The usual way trains one run after another, and sends every batch's augmented images and captions through both frozen
towers, and all validation images and captions in every epoch. Ours encodes `views` views of each training image, the
validation images and all captions once, then trains the runs of a table side by side and judges every epoch. Both have
the same seeds, orders, loss, optimizer and schedule, and up to V epochs the same views, so that both end at the same
recall but for what half floats round away. Hooks count what either tower saw, whoever called it. Image states go
through files, captions' do not.

Then training alone, without towers and evaluation, at the full size on made-up states of the same width: runs side by
side against the same runs one after another, by the same function. Prints seconds, ratios, passes and the bound that
they allow, and whether R@1 is the same.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.segmentation import COMPUTE, clocked
from stages.data.manifest import Row
from stages.data.scenes.captions import scene_captions
from stages.data.scenes.scene import Style, draw_scene
from stages.features.shards import Shards
from stages.image_text import REFERENCE_SEED
from stages.image_text.pixels import BATCH, view_dataset
from stages.image_text.reference_caption import reference_index
from stages.image_text.retrieval_vectors import TEXTS, encode_captions, encode_views
from stages.image_text.towers import Towers, load_towers
from stages.models.checkpoints.record import Checkpoint
from stages.params import retrieval as params
from stages.params.experiment import Experiment, load_experiment
from stages.retrieval.dataset import ValPairs
from stages.retrieval.projections import Projections
from stages.retrieval.training import Pairs, ProjectionTraining, contrastive_loss, train

FULL = (1464, 1449)  # training and validation images of VOC 2012
NOISE = 3.0  # of made-up captions, in deviations of the image states: recall then lies between nothing and all

Rows = dict[str, tuple[Row, ...]]


def told_scenes(folder: Path, train: int, val: int, side: int) -> Rows:
    """Captioned scenes on disk, as manifest rows."""
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    for index in range(train + val):
        split = "train" if index < train else "val"
        rng = np.random.default_rng([1, index])
        scene, path = draw_scene(rng, split, Style(side=side)), folder / f"{index}.jpg"
        Image.fromarray(scene.image).save(path, quality=93)
        rows[split].append(
            Row(str(index), split, str(path), captions=scene_captions(rng, scene), height=side, width=side)
        )
    return {split: tuple(made) for split, made in rows.items()}


def begin(experiment: Experiment, towers: Towers) -> list[list[ProjectionTraining]]:
    """The runs of Table 4 and of Table 5 before their first step; one without a recipe is judged as it comes."""
    task = experiment.retrieval
    scratch = params.GridRow(init="scratch", **task.recipe.model_dump())
    finetuned = params.GridRow(init="provided", **task.finetune.model_dump())
    tables = {
        "retrieval": {"provided": None, "scratch": scratch, "finetuned": finetuned},
        "retrieval_grid": task.grid,
    }
    seeds = {name: experiment.seed_for(f"{table}/{name}") for table, asked in tables.items() for name in asked}
    return [
        [ProjectionTraining(name, row, seeds[name], start(towers, row, seeds[name]), []) for name, row in asked.items()]
        for asked in tables.values()
    ]


def taught(runs: list[list[ProjectionTraining]]) -> list[list[ProjectionTraining]]:
    """Those that train."""
    return [[one for one in some if one.recipe] for some in runs]


def start(towers: Towers, row: params.GridRow | None, seed: int) -> Projections:
    """The provided projections, or random ones of the same shape."""
    vision, text = towers.model.vision_proj, towers.model.text_proj
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Projections(vision.in_features, text.in_features, vision.out_features)
    if row is None or row.init == "provided":
        made.vision_proj.load_state_dict(vision.state_dict())
        made.text_proj.load_state_dict(text.state_dict())
    return made.to(towers.device)


def drawn(rows: tuple[Row, ...], experiment: Experiment) -> list[str]:
    """The caption that stands for each row."""
    seed = experiment.seed_for(REFERENCE_SEED)
    return [row.captions[reference_index(row, seed)] for row in rows]


def usual_way(towers: Towers, rows: Rows, experiment: Experiment) -> list[list[ProjectionTraining]]:
    """One run after another, towers and all."""
    runs = begin(experiment, towers)
    views, workers = view_dataset(rows["val"], towers.pixels.side), COMPUTE.workers
    images = DataLoader(views, BATCH, num_workers=workers, persistent_workers=True)
    for run in chain(*runs):
        if run.recipe is None:
            run.history.append(validate(towers, images, rows["val"], run.projections, experiment))
        else:
            train_usual(towers, run, rows, images, experiment)
    return runs


def train_usual(towers: Towers, run: ProjectionTraining, rows: Rows, val: DataLoader, experiment: Experiment) -> None:
    """A training script without a cache: one pool of loading workers, kept over the epochs."""
    recipe, count, told = run.recipe, len(rows["train"]), drawn(rows["train"], experiment)
    steps, order = count // recipe.batch_size, torch.Generator().manual_seed(run.seed)
    optimizer = torch.optim.AdamW(
        run.projections.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=recipe.epochs * steps)
    seeds = [
        experiment.seed_for(f"retrieval/view/{epoch}/{row.image_id}")
        for epoch in range(recipe.epochs)
        for row in rows["train"]
    ]
    orders = [torch.randperm(count, generator=order)[: steps * recipe.batch_size] for _ in range(recipe.epochs)]
    places = torch.cat([epoch * count + some for epoch, some in enumerate(orders)]).view(-1, recipe.batch_size).tolist()
    views = view_dataset(rows["train"] * recipe.epochs, towers.pixels.side, seeds)
    batches = DataLoader(views, batch_sampler=places, num_workers=COMPUTE.workers, persistent_workers=True)
    temperature = torch.tensor(recipe.temperature, device=towers.device)
    losses = []
    for step, (some, pixels) in enumerate(batches, 1):
        # clones, as autograd saves no tensor of inference mode
        images = towers.image_states(pixels)[:, 0].clone()
        texts = towers.text_states([told[place % count] for place in some.tolist()]).clone()
        loss = contrastive_loss(
            run.projections.images(images)[None], run.projections.texts(texts)[None], temperature
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % steps == 0:
            found = validate(towers, val, rows["val"], run.projections, experiment)
            run.history.append({"epoch": step // steps, "train_loss": torch.stack(losses).mean().item(), **found})
            losses = []


def validate(
    towers: Towers, images: DataLoader, rows: tuple[Row, ...], projections: Projections, experiment: Experiment
) -> dict[str, float]:
    """One validation of the usual way, from pixels and words."""
    told = drawn(rows, experiment)
    seen = torch.cat([towers.image_states(pixels)[:, 0] for _, pixels in images])
    texts = torch.cat([towers.text_states(told[first : first + TEXTS]) for first in range(0, len(told), TEXTS)])
    return ValPairs([row.image_id for row in rows], told, seen, texts).metrics(projections)


def our_way(
    towers: Towers, rows: Rows, experiment: Experiment, views: int, seconds: dict[str, float]
) -> list[list[ProjectionTraining]]:
    """The pipeline's own functions; seconds by part."""
    with clocked(seconds, "encode"):
        pairs, val = encode(towers, rows, experiment, views)
    with clocked(seconds, "train"):
        runs = begin(experiment, towers)
        for some in taught(runs):
            train(some, pairs, val.metrics)
        for one in chain(*runs):
            if one.recipe is None:
                one.history.append(val.metrics(one.projections))
    return runs


def encode(towers: Towers, rows: Rows, experiment: Experiment, views: int) -> tuple[Pairs, ValPairs]:
    """What `encode_image_text` writes and `Cached` reads."""
    train, numbers = rows["train"] * views, [view for view in range(views) for _ in rows["train"]]
    places = zip(train, numbers, strict=True)
    seeds = [experiment.seed_for(f"retrieval/view/{view}/{row.image_id}") for row, view in places]
    asked = {"train": (train, numbers, seeds), "val": (rows["val"], [0] * len(rows["val"]), None)}
    states = {}
    with tempfile.TemporaryDirectory() as name:
        for split, some in asked.items():
            shards = Shards(Path(split), len(some[0]), {}, waiting=Path(name))
            states[split] = encode_views(towers, *some, shards).values.float().to(towers.device)
    told = encode_captions(towers, rows["train"] + rows["val"], {})
    place = {key: at for at, key in enumerate(zip(told.image_ids, told.indices, strict=True))}
    seed = experiment.seed_for(REFERENCE_SEED)
    texts = {
        split: told.values[[place[row.image_id, reference_index(row, seed)] for row in some]].float().to(towers.device)
        for split, some in rows.items()
    }
    val_ids = [row.image_id for row in rows["val"]]
    return (
        Pairs(states["train"].unflatten(0, (views, -1)), texts["train"]),
        ValPairs(val_ids, drawn(rows["val"], experiment), states["val"], texts["val"]),
    )


@contextmanager
def counted(towers: Towers) -> Iterator[Counter]:
    """Counts images in the image tower and captions in the text tower."""
    counts: Counter = Counter()

    def counting(name: str):
        def count(_module: nn.Module, _asked: tuple, states: Tensor) -> None:
            counts[name] += len(states)

        return count

    hooks = [
        towers.model.vision_model.embeddings.register_forward_hook(counting("images")),
        towers.model.text_encoder.embeddings.register_forward_hook(counting("captions")),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def made_up(towers: Towers, views: int, counts: tuple[int, int] = FULL) -> tuple[Pairs, ValPairs]:
    """States in which a caption's is its image's, turned and blurred."""
    noise = torch.Generator().manual_seed(0)
    width, text_width = towers.model.vision_proj.in_features, towers.model.text_proj.in_features
    turn = torch.randn(width, text_width, generator=noise) / width**0.5
    images = torch.randn(sum(counts), width, generator=noise)
    texts = images @ turn + NOISE * torch.randn(sum(counts), text_width, generator=noise)
    blurred = images[: counts[0]] + 0.3 * torch.randn(views, counts[0], width, generator=noise)
    device = towers.device
    return (
        Pairs(blurred.to(device), texts[: counts[0]].to(device)),
        ValPairs(list(map(str, range(counts[1]))), [], images[counts[0] :].to(device), texts[counts[0] :].to(device)),
    )


def stacked(towers: Towers, experiment: Experiment) -> None:
    """Training alone: the runs of a table side by side, against one after another."""
    pairs, val = made_up(towers, experiment.retrieval.views)
    seconds: dict[str, float] = {}
    warm, together, single = (taught(begin(experiment, towers)) for _ in range(3))
    for some in warm:
        train([brief(one) for one in some], pairs, judge_nothing)
    with clocked(seconds, "together"):
        for some in together:
            train(some, pairs, judge_nothing)
    with clocked(seconds, "single"):
        for one in chain(*single):
            train([one], pairs, judge_nothing)
    both = list(zip(chain(*together), chain(*single), strict=True))
    with clocked(seconds, "judging"):
        recalls = [tuple(val.metrics(one.projections)["image_to_text_r_at_1"] for one in pair) for pair in both]
    epochs = sum(one.recipe.epochs for one, _ in both)
    judging = seconds["judging"] * epochs / (2 * len(both))
    alike = sum(ours == alone for ours, alone in recalls)
    moved = max(apart(ours.projections, alone.projections) for ours, alone in both)
    print(f"training alone, {len(pairs)} pairs of {pairs.images.shape[-1]} wide, {len(both)} runs, {epochs} epochs")
    print(f"one by one    {seconds['single']:8.1f} s")
    print(
        f"stacked       {seconds['together']:8.1f} s   ratio {seconds['single'] / seconds['together']:.1f}; "
        f"judging every epoch would add {judging:.1f} s to both"
    )
    print(
        f"              R@1 is the same in {alike} of {len(both)} runs (the best: {max(recalls)[0]:.1f} %); "
        f"{f'weights differ by {moved:.1e} at most' if moved else 'and so is every bit of the weights'}"
    )


def judge_nothing(_projections: Projections) -> dict[str, float]:
    return {}


def brief(training: ProjectionTraining) -> ProjectionTraining:
    """The same run for one epoch."""
    return replace(training, recipe=training.recipe.model_copy(update={"epochs": 1}))


def apart(first: Projections, second: Projections) -> float:
    """The largest difference of any weight."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def recall(runs: list[list[ProjectionTraining]]) -> dict[str, float]:
    """Every run's last R@1 from image to caption, in percent."""
    return {one.name: one.history[-1]["image_to_text_r_at_1"] for one in chain(*runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=96, help="training images")
    parser.add_argument("--val", type=int, default=96, help="validation images")
    parser.add_argument("--views", type=int, nargs="+", default=[8, 4])
    asked = parser.parse_args()
    torch.set_flush_denormal(True)
    experiment = load_experiment()
    source = experiment.embedded.blip
    towers = load_towers(Checkpoint(source, source, sha256=""), COMPUTE)
    stacked(towers, experiment)
    with tempfile.TemporaryDirectory() as name:
        rows = told_scenes(Path(name), asked.train, asked.val, towers.pixels.side)
        few = {split: some[:16] for split, some in rows.items()}
        our_way(towers, few, experiment, 1, {})  # what is imported at the first call is nobody's time
        seconds: dict[str, float] = {}
        with counted(towers) as counts, clocked(seconds, "usual"):
            usual = usual_way(towers, rows, experiment)
        side, count = towers.pixels.side, len(recall(usual))
        print(f"{asked.train} + {asked.val} images of {side}x{side}, {count} runs")
        print(f"usual way     {seconds['usual']:8.1f} s   {passes(counts)}", flush=True)
        for views in asked.views:
            parts: dict[str, float] = {}
            with counted(towers) as ours:
                runs = our_way(towers, rows, experiment, views, parts)
            report(views, seconds["usual"], parts, counts, ours)
            compare(recall(usual), recall(runs))


def passes(counts: Counter) -> str:
    return f"{counts['images']} images and {counts['captions']} captions encoded"


def report(views: int, usual: float, parts: dict[str, float], counts: Counter, ours: Counter) -> None:
    total = sum(parts.values())
    ratio, bound = usual / total, counts["images"] / ours["images"]
    print(
        f"cached, V={views:<3} {total:8.1f} s   {passes(ours)}; encoding {parts['encode']:.1f} s, "
        f"training and judging {parts['train']:.1f} s"
    )
    print(f"              ratio {ratio:.1f}; bound by counted image passes {bound:.1f}; {ratio / bound:.0%} of it")


def compare(usual: dict[str, float], ours: dict[str, float]) -> None:
    differences = {name: ours[name] - usual[name] for name in usual if ours[name] != usual[name]}
    told = ", ".join(f"{name} {difference:+.1f}" for name, difference in differences.items())
    print(
        f"              R@1 is the usual way's in {len(usual) - len(differences)} of {len(usual)} runs"
        + (f"; others, in points: {told}" if told else "")
    )


if __name__ == "__main__":
    main()
