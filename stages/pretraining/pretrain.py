"""Pretrain the shipped ViT on generated scenes, from image-level labels only (no masks).

The loss has two parts: presence of the 20 classes and 8 colors, predicted from the class token, and presence of the
classes by multiple-instance learning over patches (the logsumexp of a patch classifier's logits). Every scene is
generated on the fly and used once. An interrupted run resumes from its last evaluation and ends in the same weights.
Several processes share the training under `torchrun` (docs/distributed.md).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core import processes
from stages.core.train_state import TrainState
from stages.data.scenes.scene import CLASSES, COLORS, SceneObject, Style, draw_scene
from stages.models import vit
from stages.models.compute import get_device
from stages.params.pretrain import Pretrain
from stages.params.section import load_section
from stages.pretraining.batch_norm import share_batch_norm
from stages.pretraining.card import CardInfo, describe_device
from stages.pretraining.training import build_optimizers, fit
from stages.pretraining.vit_card import write_card

FOLDER = Path("data/checkpoints/vit_scenes")
RESUME = Path("data/resume/pretrain.pt")
HELD_OUT = 1000  # scenes with the held-out digits of the pretraining block
ZOOM = (0.9, 1.25)  # the task enlarges training views by up to 300 / 256, which this range includes
NAMES = (*CLASSES[1:], *COLORS)  # of the 28 presence labels; class 0 is the background
FOREGROUND = len(CLASSES) - 1


def load_example(index: int, writers: str, seed: int, style: Style) -> tuple[Tensor, Tensor]:
    """Scene `index` of a split: image `(3, side, side)` uint8, and presence `(28,)` of classes and colors."""
    rng = np.random.default_rng([seed, *writers.encode(), index])
    scene = draw_scene(rng, writers, style)
    flip = rng.random() < 0.5 and writers == "pretrain"
    pixels = scene.image[:, ::-1] if flip else scene.image
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), _presence(scene.objects)


def _presence(objects: tuple[SceneObject, ...]) -> Tensor:
    present = {scene_object.name for scene_object in objects} | {scene_object.color for scene_object in objects}
    return torch.tensor([float(name in present) for name in NAMES])


class Pretrainer(nn.Module):
    """The ViT with a presence layer on its class token, and a patch classifier that only the loss needs."""

    def __init__(self, architecture: vit.Architecture):
        super().__init__()
        self.vit = vit.build(architecture)
        self.patch_head = nn.Linear(architecture.dim, FOREGROUND)
        # logsumexp over 100 patches adds log(100) = 4.6: presence starts near its prior, sigmoid(-6 + 4.6) = 0.2.
        nn.init.constant_(self.patch_head.bias, -6.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Presence logits for uint8 `images`: `(B, 28)` from the class token, `(B, 20)` from the patches."""
        tokens = self.vit.forward_features(vit.normalize(images))
        patches = self.patch_head(tokens[:, self.vit.num_prefix_tokens :])  # (B, patches, 20)
        return self.vit.forward_head(tokens), patches.logsumexp(1)


def presence_loss(outputs: tuple[Tensor, Tensor], present: Tensor) -> Tensor:
    """Binary cross entropy of both outputs of `Pretrainer`; patches predict classes, but no colors."""
    class_token_logits, patch_logits = outputs
    class_token_loss = F.binary_cross_entropy_with_logits(class_token_logits, present)
    return class_token_loss + F.binary_cross_entropy_with_logits(patch_logits, present[:, :FOREGROUND])


def part_of_loss(model: Pretrainer, images: Tensor, present: Tensor, batch_size: int) -> Tensor:
    """This process's part of the mean loss over a batch of `batch_size` scenes, from its share of them."""
    return presence_loss(model(images), present) * (len(images) / batch_size)


def pretrain(recipe: Pretrain, device: torch.device) -> tuple[Pretrainer, vit.Architecture, TrainState]:
    """Train by `recipe`, resuming from the last evaluation of an interrupted run with the same recipe."""
    architecture = vit.Architecture(outputs=len(NAMES))
    style = Style(side=architecture.side, zoom=ZOOM)
    torch.manual_seed(recipe.seed)
    model = Pretrainer(architecture).to(device)
    model.to(memory_format=torch.channels_last)  # the stem's convolutions are faster
    share_batch_norm(model)
    held_out = _load_held_out(recipe, style)
    state = fit(
        recipe,
        "pretrain",
        model,
        build_optimizers(model, model.vit.blocks.parameters(), recipe),
        partial(load_example, writers="pretrain", seed=recipe.seed, style=style),
        lambda batch: part_of_loss(model, batch[0], batch[1], recipe.batch_size),
        lambda: {"mAP": mean_average_precision(model, held_out, device)},
        recipe.model_dump(),
        RESUME,
    )
    return model, architecture, state


def _load_held_out(recipe: Pretrain, style: Style) -> tuple[Tensor, Tensor]:
    """Images and presence of `HELD_OUT` scenes, without zoom."""
    style = replace(style, zoom=(1.0, 1.0))
    examples = [load_example(index, "pretrain_val", recipe.seed, style) for index in range(HELD_OUT)]
    images, present = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(present)


@torch.inference_mode()
def presence_scores(model: Pretrainer, images: Tensor, device: torch.device) -> Tensor:
    """Presence logits `(N, 28)` from the class token, for uint8 images `(N, 3, side, side)`."""
    own = processes.share(images)
    scores = torch.cat([model(batch.to(device))[0].cpu() for batch in own.split(100)])
    return processes.all_gather(scores, len(images))


def mean_average_precision(model: Pretrainer, held_out: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Mean average precision of the 20 classes, predicted from the class token."""
    images, present = held_out
    scores = presence_scores(model, images, device)
    return float(average_precision_score(present[:, :FOREGROUND], scores[:, :FOREGROUND], average="macro"))


def main() -> None:
    recipe = load_section(Pretrain, "pretrain")
    device = get_device()
    model, architecture, state = pretrain(recipe, device)
    images, present = _load_held_out(recipe, Style(side=architecture.side))
    scores = presence_scores(model.eval(), images, device)
    if not processes.is_main():
        return
    average_precision = average_precision_score(present, scores, average=None)
    vit.save(FOLDER / "model.safetensors", model.vit.cpu(), architecture)
    parameters = sum(weight.numel() for weight in model.vit.parameters())
    info = CardInfo(parameters, HELD_OUT, describe_device(device))
    by_name = dict(zip(NAMES, average_precision.tolist(), strict=True))
    write_card(FOLDER, recipe, architecture, info, state, by_name)
    RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with processes.training_stage("pretrain"):
        main()
