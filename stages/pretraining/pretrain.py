"""Pretrain the shipped ViT on generated scenes, from image-level labels only (no masks).

The loss has these parts, each from labels that a caption gives ("a red circle at the top left"):

- presence of the 20 classes and 8 colors, predicted from the class token;
- presence of the classes, by multiple-instance learning over patches (the logsumexp of a patch classifier's logits);
- color and place, one of nine, of each class, predicted from its patches. Without these the tower learns what is in a
  scene but not where, nor which color is whose, and a captioner cannot say what its tower has thrown away;
- place of each class again, as the ninth of the image that its patch logits lie in. Without this, attention is free to
  collect the evidence for a class next to the object, and a linear head's masks hang beside the objects.

Positions start as sines and cosines of row and column, since presence alone hardly trains them.

Every scene is generated on the fly and used once. An interrupted run resumes from its last evaluation and ends in the
same weights. Several processes share the training under `torchrun` (docs/distributed.md).
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core import processes
from stages.core.train_state import TrainState
from stages.data.scenes.scene import Style, draw_scene
from stages.models import vit
from stages.models.compute import get_device
from stages.params.pretrain import Pretrain
from stages.params.section import load_section
from stages.pretraining.batch_norm import share_batch_norm
from stages.pretraining.card import CardInfo, describe_device
from stages.pretraining.object_heads import (
    ABSENT,
    FOREGROUND,
    NAMES,
    Labels,
    ObjectHeads,
    ObjectPredictions,
    label_objects,
    object_loss,
    presence_loss,
)
from stages.pretraining.training import build_optimizers, fit
from stages.pretraining.vit_card import write_card

FOLDER = Path("data/checkpoints/vit_scenes")
RESUME = Path("data/resume/pretrain.pt")
HELD_OUT = 1000  # scenes with the held-out digits of the pretraining block
ZOOM = (0.9, 1.25)  # the task enlarges training views by up to 300 / 256, which this range includes
WAVELENGTHS = 10.0  # ratio of the longest to the shortest of the sine positions, which is 2 pi patches


class Predictions(NamedTuple):
    """Logits of the presence of `NAMES` from the class token, `(B, 28)`, and of the objects from the patches."""

    present: Tensor
    objects: ObjectPredictions


def load_example(index: int, writers: str, seed: int, style: Style) -> tuple[Tensor, ...]:
    """Scene `index` of a split: its image `(3, side, side)` uint8, and its `Labels`."""
    rng = np.random.default_rng([seed, *writers.encode(), index])
    scene = draw_scene(rng, writers, style)
    objects = scene.objects
    pixels = scene.image
    if rng.random() < 0.5 and writers == "pretrain":
        pixels = pixels[:, ::-1]
        objects = tuple(replace(scene_object, x=style.side - scene_object.x) for scene_object in objects)
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return image, *label_objects(objects, style.side)


class Pretrainer(nn.Module):
    """The ViT with a presence layer on its class token, and `ObjectHeads` on its patches."""

    def __init__(self, architecture: vit.Architecture, recipe: Pretrain):
        super().__init__()
        self.object_weight = recipe.object_weight
        self.vit = vit.build(architecture)
        self.object_heads = ObjectHeads(architecture.dim)
        self._add_sine_positions(recipe.position_scale)

    @torch.no_grad()
    def _add_sine_positions(self, scale: float) -> None:
        positions = self.vit.pos_embed
        assert positions is not None  # timm's stubs allow for a ViT without positions
        grid = list(self.vit.patch_embed.grid_size)
        sines = build_sincos2d_pos_embed(grid, self.vit.embed_dim, temperature=WAVELENGTHS)
        positions[:, self.vit.num_prefix_tokens :] += scale * sines

    def forward(self, images: Tensor) -> Predictions:
        """The predictions for uint8 `images`."""
        tokens = self.vit.forward_features(vit.normalize(images))
        patches = tokens[:, self.vit.num_prefix_tokens :].unflatten(1, self.vit.patch_embed.grid_size)
        return Predictions(self.vit.forward_head(tokens), self.object_heads(patches))

    def loss(self, images: Tensor, labels: Labels, batch_size: int) -> Tensor:
        """This process's part of the mean loss over a batch of `batch_size` scenes, from its share of them.

        Patches predict presence of classes, but not of colors.
        """
        predicted = self(images)
        presence = F.binary_cross_entropy_with_logits(predicted.present, labels.present)
        presence = presence + presence_loss(predicted.objects, labels)
        return presence * (len(images) / batch_size) + self.object_weight * object_loss(predicted.objects, labels)


def pretrain(recipe: Pretrain, device: torch.device) -> tuple[Pretrainer, vit.Architecture, TrainState]:
    """Train by `recipe`, resuming from the last evaluation of an interrupted run with the same recipe."""
    architecture = vit.Architecture(outputs=len(NAMES))
    style = Style(side=architecture.side, zoom=ZOOM)
    torch.manual_seed(recipe.seed)
    model = Pretrainer(architecture, recipe).to(device)
    model.to(memory_format=torch.channels_last)  # the stem's convolutions are faster
    share_batch_norm(model)
    held_out = load_held_out(recipe, style)
    state = fit(
        recipe,
        "pretrain",
        model,
        build_optimizers(model, model.vit.blocks.parameters(), recipe),
        partial(load_example, writers="pretrain", seed=recipe.seed, style=style),
        lambda batch: model.loss(batch[0], Labels(*batch[1:]), recipe.batch_size),
        lambda: evaluate(model, held_out, device),
        recipe.model_dump(),
        RESUME,
    )
    return model, architecture, state


def load_held_out(recipe: Pretrain, style: Style) -> tuple[Tensor, Labels]:
    """Images and labels of `HELD_OUT` scenes, without zoom, as one batch."""
    style = replace(style, zoom=(1.0, 1.0))
    examples = [load_example(index, "pretrain_val", recipe.seed, style) for index in range(HELD_OUT)]
    images, *labels = (torch.stack(tensors) for tensors in zip(*examples, strict=True))
    return images, Labels(*labels)


@torch.inference_mode()
def predict(model: Pretrainer, images: Tensor, device: torch.device) -> Predictions:
    """The predictions for any number of uint8 `images`."""
    own = processes.share(images)
    outputs = [model(batch.to(device)) for batch in own.split(100)]

    def gather(batches: Iterable[Tensor]) -> Tensor:
        return processes.all_gather(torch.cat([logits.cpu() for logits in batches]), len(images))

    present, objects = zip(*outputs, strict=True)
    return Predictions(gather(present), ObjectPredictions(*map(gather, zip(*objects, strict=True))))


def evaluate(model: Pretrainer, held_out: tuple[Tensor, Labels], device: torch.device) -> dict[str, float]:
    """Mean average precision of the 20 classes; shares of objects whose place, color, and ninth is right."""
    images, labels = held_out
    predicted = predict(model, images, device)
    in_scene = labels.places != ABSENT

    def accuracy(logits: Tensor, answers: Tensor) -> float:
        return (logits.argmax(-1) == answers)[in_scene].double().mean().item()

    present = labels.present[:, :FOREGROUND]
    return {
        "mAP": float(average_precision_score(present, predicted.present[:, :FOREGROUND])),
        "place": accuracy(predicted.objects.places, labels.places),
        "color": accuracy(predicted.objects.colors, labels.colors),
        "ninth": accuracy(predicted.objects.ninths, labels.places),
    }


def main() -> None:
    recipe = load_section(Pretrain, "pretrain")
    device = get_device()
    model, architecture, state = pretrain(recipe, device)
    images, labels = load_held_out(recipe, Style(side=architecture.side))
    predicted = predict(model.eval(), images, device)
    if not processes.is_main():
        return
    average_precision = average_precision_score(labels.present, predicted.present, average=None)
    vit.save(FOLDER / "model.safetensors", model.vit.cpu(), architecture)
    parameters = sum(weight.numel() for weight in model.vit.parameters())
    info = CardInfo(parameters, HELD_OUT, describe_device(device))
    by_name = dict(zip(NAMES, average_precision.tolist(), strict=True))
    write_card(FOLDER, recipe, architecture, info, state, by_name)
    RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with processes.training_stage("pretrain"):
        main()
