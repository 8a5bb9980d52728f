"""Train projections from cached states, all recipes of one batch size in one batched product.

Every recipe has its own weights, order of images, learning rate and temperature, so that each ends as if it had been
trained alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stages.params.retrieval import TrainingParams
from stages.retrieval.projections import Projections, StackedAdamW, StackedProjections


@dataclass(frozen=True)
class Pairs:
    """States of one caption an image: `images` `(views, N, image_dim)`, `texts` `(N, text_dim)`, both float32."""

    images: Tensor
    texts: Tensor

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class ProjectionTraining:
    """One recipe, from its first weights to its history (a dict an epoch)."""

    name: str
    recipe: TrainingParams
    seed: int
    projections: Projections
    history: list[dict]


class DivergedError(Exception):
    """A training whose loss or weights are no numbers any more: its name and the epoch."""


Evaluate = Callable[[Projections], dict[str, float]]


def train(trainings: list[ProjectionTraining], pairs: Pairs, evaluate: Evaluate, bar: tqdm | None = None) -> None:
    """Train every one of `trainings` in place; those of one batch size side by side."""
    alike: dict[int, list[ProjectionTraining]] = {}
    for training in trainings:
        alike.setdefault(training.recipe.batch_size, []).append(training)
    for batch, some in alike.items():
        _train_alike(some, pairs, evaluate, batch, bar)


def _train_alike(
    alike: list[ProjectionTraining], pairs: Pairs, evaluate: Evaluate, batch: int, bar: tqdm | None
) -> None:
    """One batched product, one optimizer. A training that is through stays as it is until the longest one is."""
    stack, recipes = StackedProjections([one.projections for one in alike]), [one.recipe for one in alike]
    optimizer = StackedAdamW(stack, [one.lr for one in recipes], [one.weight_decay for one in recipes])
    device, per_epoch = pairs.texts.device, len(pairs) // batch
    temperature = torch.tensor([recipe.temperature for recipe in recipes], device=device)[:, None, None]
    lengths = torch.tensor([recipe.epochs * per_epoch for recipe in recipes], device=device)
    orders = [torch.Generator().manual_seed(one.seed) for one in alike]
    for epoch in range(max(recipe.epochs for recipe in recipes)):
        views = pairs.images[epoch % len(pairs.images)]
        order = torch.stack([torch.randperm(len(pairs), generator=one) for one in orders]).to(device)
        losses = []
        for step in range(per_epoch):
            some = order[:, step * batch : (step + 1) * batch]  # (trainings, batch)
            loss = contrastive_loss(stack.images(views[some]), stack.texts(pairs.texts[some]), temperature)
            optimizer.step(loss.sum(), (1 - (epoch * per_epoch + step) / lengths).clamp(min=0))
            losses.append(loss.detach())
        stack.write_back()
        going = [place for place, one in enumerate(alike) if epoch < one.recipe.epochs]
        for place in going:
            _note(alike[place], epoch + 1, torch.stack(losses)[:, place], evaluate)
        if bar is not None:
            bar.update(len(going))


def _note(one: ProjectionTraining, epoch: int, losses: Tensor, evaluate: Evaluate) -> None:
    """Add an epoch to a training's history; raises `DivergedError` where it has none to tell."""
    weights = torch.cat([weight.flatten() for weight in one.projections.parameters()])
    if not (bool(losses.isfinite().all()) and bool(weights.isfinite().all())):
        raise DivergedError(one.name, epoch)
    one.history.append({"epoch": epoch, "train_loss": losses.mean().item(), **evaluate(one.projections)})


def contrastive_loss(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """InfoNCE in both directions, their mean: `(R,)` of unit vectors `(R, batch, width)`; equal places belong together.

    Images of a batch are all different ones, so no caption is held against another of its own image.
    """
    logits = images @ texts.transpose(1, 2) / temperature  # (R, batch, batch)
    right = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    both = [F.cross_entropy(side.flatten(0, 1), right.flatten(), reduction="none") for side in (logits, logits.mT)]
    return sum(both).unflatten(0, logits.shape[:2]).mean(1) / 2
