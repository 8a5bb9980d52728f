"""Train a classifier for one epoch with accumulated gradients, and evaluate it."""

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm import tqdm

from stages.classification.classifier import Classifier
from stages.classification.pixels import ImageViews
from stages.core import processes
from stages.core.workers import build_loader
from stages.models.compute import MixedPrecision, mixed_precision
from stages.params.classification import FineTuning
from stages.params.compute import Compute

EVAL_BATCH_SIZE = 100


def train_step(
    classifier: Classifier,
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    images: int,
    mixed: MixedPrecision,
) -> float:
    """Take one optimizer step on the mean loss over `images`; return the sum of the losses of `batches`.

    Gradients of all batches are added up before the step. Each loss is divided by the number of all images, not of
    the batch's own, so the step equals that of one large batch even if batches differ in size. Of several processes,
    each has the batches of its share of the images, or none.
    """
    device = next(classifier.parameters()).device
    mixed.scaler.scale(torch.zeros((), device=device))  # creates the scale, which a process without batches needs too
    total = torch.zeros((), dtype=torch.float64, device=device)  # read once, as a GPU stops at every reading
    for pixels, labels in batches:
        with mixed.products():
            logits = classifier(pixels.to(device, non_blocking=True))
        # At least in float32: half precision would round the log-softmax.
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(precise, labels.to(device, non_blocking=True), reduction="sum")
        mixed.backward(loss / images)
        total += loss.detach()
    processes.all_reduce_gradients(classifier.parameters())
    mixed.step(optimizer)
    return total.item()


def train_epoch(
    classifier: Classifier,
    optimizer: Optimizer,
    views: ImageViews,
    order: Tensor,
    setting: FineTuning,
    mixed: MixedPrecision,
    bar: tqdm,
) -> float:
    """Train on all views in `order`, with one step per `setting.accumulate` batches; return the mean loss.

    The last batch and the last step of an epoch take the remaining images. Several processes share the images of each
    step, and each splits its share into batches.
    """
    classifier.train()
    # A window holds the images of one step.
    windows = order.split(setting.batch_size * setting.accumulate)
    batches_per_window = [split_batches(processes.share(window), setting.batch_size) for window in windows]
    all_batches = [batch for batches in batches_per_window for batch in batches]
    loaded = iter(build_loader(views, mixed.compute.workers, batch_sampler=all_batches))
    total = 0.0
    for window, window_batches in zip(windows, batches_per_window, strict=True):
        batches = (next(loaded) for _ in window_batches)
        total += train_step(classifier, optimizer, batches, len(window), mixed)
        bar.update(len(window))
    return processes.all_reduce(torch.tensor(total, dtype=torch.float64)).item() / len(order)


def split_batches(indices: Tensor, batch_size: int) -> list[list[int]]:
    """Split `indices` into batches; the last one takes the rest. No indices give no batches."""
    return [batch.tolist() for batch in indices.split(batch_size) if len(batch)]


def steps_per_epoch(images: int, setting: FineTuning) -> int:
    """Number of optimizer steps in an epoch, for a training set of `images`."""
    return math.ceil(images / (setting.batch_size * (setting.equal_steps or setting.accumulate)))


def images_per_epoch(images: int, setting: FineTuning) -> int:
    """Number of images that the steps of an epoch take from a training set of `images`: all, but for `equal_steps`."""
    return min(images, steps_per_epoch(images, setting) * setting.batch_size * setting.accumulate)


@dataclass(frozen=True)
class EvalResult:
    """A classifier's output on `N` images: `probabilities` `(N, labels)`, true label indices `(N,)`, mean loss."""

    probabilities: Tensor
    truth: Tensor
    loss: float

    @property
    def predicted(self) -> Tensor:
        """The index of each image's most probable label, `(N,)`."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * int((self.predicted == self.truth).sum()) / len(self.truth)


@torch.inference_mode()
def evaluate(classifier: Classifier, views: ImageViews, compute: Compute) -> EvalResult:
    """Evaluate a classifier on all views, in their order; one that trains in float64 as it is saved, in float32.

    Several processes share the views; each returns the result on all of them.
    """
    if classifier.dtype == torch.float64:
        classifier = deepcopy(classifier).float()
    device = next(classifier.parameters()).device
    classifier.eval()
    batches = split_batches(processes.share(torch.arange(len(views))), EVAL_BATCH_SIZE)
    loader = build_loader(views, compute.workers, batch_sampler=batches)
    logits_per_batch = [torch.empty(0, len(classifier.labels))]  # a process may have no views
    for pixels, _ in loader:
        with mixed_precision(compute):
            logits_per_batch.append(classifier(pixels.to(device, non_blocking=True)).float().cpu())
    logits = processes.all_gather(torch.cat(logits_per_batch), len(views))
    truth = torch.tensor([row.label for row in views.rows])
    return EvalResult(logits.softmax(1), truth, F.cross_entropy(logits, truth).item())
