"""Train projections on cached states with a contrastive loss.

Every training has its own weights, image order, learning rate and temperature. Trainings with the same batch size run
side by side (`stacked_training.py`), and each ends as if it had run alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stages.core.live import LiveRun
from stages.params.retrieval import TrainingParams
from stages.retrieval.projections import Projections
from stages.retrieval.stacked_training import StackedAdamW, StackedProjections


@dataclass(frozen=True)
class TrainPairs:
    """Float32 states of one caption per image: `images` `(views, N, image_dim)`, `texts` `(N, text_dim)`.

    A caption has one state in all epochs. The original trains with BERT's dropout active, so it encodes every caption
    anew in every batch: 0.1 points of R@1 (docs/paper-profile.md).
    """

    images: Tensor
    texts: Tensor

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class ProjectionTraining:
    """One training; `train` updates `projections`, and adds one dict per epoch to `history` and to `live`."""

    name: str
    params: TrainingParams
    seed: int
    projections: Projections
    live: LiveRun | None = None
    history: list[dict] = field(default_factory=list)


class DivergedError(Exception):
    """A training reached a loss or weight that is not finite. `args` are its name and the epoch."""


Evaluate = Callable[[Projections], dict[str, float]]


def train(
    trainings: list[ProjectionTraining], pairs: TrainPairs, evaluate: Evaluate, progress: tqdm | None = None
) -> None:
    """Run all trainings, in place. Raises `DivergedError`."""
    groups: dict[int, list[ProjectionTraining]] = {}
    for training in trainings:
        groups.setdefault(training.params.batch_size, []).append(training)
    for batch_size, group in groups.items():
        _train_stacked(group, pairs, evaluate, batch_size, progress)


def _train_stacked(
    trainings: list[ProjectionTraining], pairs: TrainPairs, evaluate: Evaluate, batch_size: int, progress: tqdm | None
) -> None:
    """Train until the longest training ends; shorter ones then have a learning rate of 0 and stay as they are."""
    params = [training.params for training in trainings]
    stack = StackedProjections([training.projections for training in trainings])
    optimizer = StackedAdamW(stack, [row.lr for row in params], [row.weight_decay for row in params])
    temperature = pairs.texts.new_tensor([row.temperature for row in params])[:, None, None]
    steps_per_epoch = len(pairs) // batch_size  # the last partial batch is dropped
    total_steps = pairs.texts.new_tensor([row.epochs * steps_per_epoch for row in params])
    generators = [torch.Generator().manual_seed(training.seed) for training in trainings]
    for epoch in range(max(row.epochs for row in params)):
        views = pairs.images[epoch % len(pairs.images)]
        orders = [torch.randperm(len(pairs), generator=generator) for generator in generators]
        order = torch.stack(orders).to(pairs.texts.device)  # (trainings, N)
        losses = []
        for step in range(steps_per_epoch):
            batch = order[:, step * batch_size : (step + 1) * batch_size]
            loss = contrastive_loss(stack.images(views[batch]), stack.texts(pairs.texts[batch]), temperature)
            # The learning rate falls linearly to 0, one step per batch.
            schedule = (1 - (epoch * steps_per_epoch + step) / total_steps).clamp(min=0)
            optimizer.step(loss.sum(), schedule)
            losses.append(loss.detach())
        stack.copy_to_modules()
        for training, training_losses in zip(trainings, torch.stack(losses).T, strict=True):
            if epoch < training.params.epochs:
                _add_epoch(training, epoch + 1, training_losses, evaluate)
                if progress is not None:
                    progress.update()


def _add_epoch(training: ProjectionTraining, epoch: int, losses: Tensor, evaluate: Evaluate) -> None:
    """Evaluate after an epoch and extend the history."""
    weights = torch.cat([weight.flatten() for weight in training.projections.parameters()])
    if not (bool(losses.isfinite().all()) and bool(weights.isfinite().all())):
        raise DivergedError(training.name, epoch)
    metrics = evaluate(training.projections)
    training.history.append({"epoch": epoch, "train_loss": losses.mean().item(), **metrics})
    if training.live:
        training.live.epoch(training.history[-1])


def contrastive_loss(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """InfoNCE loss `(R,)`, the mean of both directions, of unit vectors `(R, batch, width)`; pair i is image i, text i.

    The images of a batch are distinct, so every other text of the batch is a true negative.
    """
    logits = images @ texts.transpose(1, 2) / temperature  # (R, batch, batch)
    targets = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1).flatten()
    image_to_text = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    text_to_image = F.cross_entropy(logits.mT.flatten(0, 1), targets, reduction="none")
    return (image_to_text + text_to_image).unflatten(0, logits.shape[:2]).mean(1) / 2
