"""Fine-tuning a classifier: steps of accumulated gradients, epochs, and what it makes of the validation images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from stages.classification.classifier import Classifier
from stages.classification.pixels import ImageViews
from stages.models.compute import MixedPrecision, mixed_precision
from stages.params.compute import Compute

EVAL_BATCH = 100  # validation images


def train_step(
    classifier: Classifier,
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    images: int,
    mixed: MixedPrecision,
) -> float:
    """One step on the mean loss over `images`, which come in `batches`; returns the sum of their losses.

    Every batch's gradient is added up before the step, so that it is the step of one batch that holds them all.
    """
    device, total = next(classifier.parameters()).device, 0.0
    for pixels, labels in batches:
        with mixed.products():
            logits = classifier(pixels.to(device, non_blocking=True))
        loss = F.cross_entropy(logits.float(), labels.to(device), reduction="sum")
        mixed.backward(loss / images)
        total += loss.item()
    mixed.step(optimizer)
    return total


def train_epoch(
    classifier: Classifier,
    optimizer: Optimizer,
    views: ImageViews,
    order: Tensor,
    batch: int,
    accumulate: int,
    mixed: MixedPrecision,
    bar: tqdm,
) -> float:
    """One pass over the views in `order`, a step every `accumulate` batches; returns the mean loss.

    The last batch and the last step of an epoch take what is left.
    """
    classifier.train()
    windows = [window.split(batch) for window in order.split(batch * accumulate)]
    asked = [some.tolist() for window in windows for some in window]
    loader, total = iter(DataLoader(views, batch_sampler=asked, **_loading(mixed.compute))), 0.0
    for window in windows:
        batches = (next(loader) for _ in window)
        images = sum(len(some) for some in window)
        total += train_step(classifier, optimizer, batches, images, mixed)
        bar.update(images)
    return total / len(order)


def _loading(compute: Compute) -> dict[str, object]:
    return {"num_workers": compute.workers, "pin_memory": torch.cuda.is_available()}


def steps_per_epoch(images: int, batch: int, accumulate: int) -> int:
    """Optimizer steps in an epoch."""
    return math.ceil(images / (batch * accumulate))


@dataclass(frozen=True)
class EvalResult:
    """What a classifier makes of `N` images: `probabilities` `(N, labels)`, and the mean loss."""

    probabilities: Tensor
    truth: Tensor
    loss: float

    @property
    def predicted(self) -> Tensor:
        """The likeliest label's index of every image."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """Percent of the images whose likeliest label is the right one."""
        return 100 * int((self.predicted == self.truth).sum()) / len(self.truth)


@torch.inference_mode()
def evaluate(classifier: Classifier, views: ImageViews, compute: Compute) -> EvalResult:
    """All of the views, in their order."""
    device, logits = next(classifier.parameters()).device, []
    classifier.eval()
    for pixels, _ in DataLoader(views, EVAL_BATCH, **_loading(compute)):
        with mixed_precision(compute):
            logits.append(classifier(pixels.to(device, non_blocking=True)).float().cpu())
    found, truth = torch.cat(logits), torch.tensor(views.labels)
    return EvalResult(found.softmax(1), truth, F.cross_entropy(found, truth).item())
