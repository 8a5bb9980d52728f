"""Pretrain the shipped ViT on generated scenes, from image-level labels only (no masks).

The loss has three parts: presence of the 20 classes and 8 colors, predicted from the class token; presence of the
classes by multiple-instance learning over patches (the logsumexp of a patch classifier's logits); and the place of each
class among the nine that captions can name ("at the top left"), predicted from its patches. Without the third, the
tower learns what is in a scene but not where, and a captioner cannot say what its tower has thrown away. Positions
start as sines and cosines of row and column, since presence alone hardly trains them.

Every scene is generated on the fly and used once. An interrupted run resumes from its last evaluation and ends in the
same weights. Several processes share the training under `torchrun` (docs/distributed.md).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core import processes
from stages.core.train_state import TrainState
from stages.data.scenes.captions import grid_cell
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
PLACES = 9
ABSENT = -100  # the place of a class that is not in a scene
WAVELENGTHS = 10.0  # ratio of the longest to the shortest of the sine positions, which is 2 pi patches


def load_example(index: int, writers: str, seed: int, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """Scene `index` of a split: image, presence of classes and colors, and places of classes.

    Shapes: `(3, side, side)` uint8, `(28,)` of 0 and 1, and `(20,)` of `PLACES`, `ABSENT` for classes not in the scene.
    """
    rng = np.random.default_rng([seed, *writers.encode(), index])
    scene = draw_scene(rng, writers, style)
    objects = scene.objects
    pixels = scene.image
    if rng.random() < 0.5 and writers == "pretrain":
        pixels = pixels[:, ::-1]
        objects = tuple(replace(scene_object, x=style.side - scene_object.x) for scene_object in objects)
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return image, presence(objects), _place_labels(objects, style.side)


def presence(objects: tuple[SceneObject, ...]) -> Tensor:
    """1 for each of `NAMES` that the objects have, else 0: `(28,)`."""
    present = {scene_object.name for scene_object in objects} | {scene_object.color for scene_object in objects}
    return torch.tensor([float(name in present) for name in NAMES])


def _place_labels(objects: tuple[SceneObject, ...], side: int) -> Tensor:
    labels = torch.full((FOREGROUND,), ABSENT)
    for scene_object in objects:
        row, column = grid_cell(scene_object, side)
        labels[scene_object.label - 1] = 3 * row + column
    return labels


class Pretrainer(nn.Module):
    """The ViT with a presence layer on its class token, and two layers on its patches that only the loss needs."""

    def __init__(self, architecture: vit.Architecture, recipe: Pretrain):
        super().__init__()
        self.place_weight = recipe.place_weight
        self.vit = vit.build(architecture)
        self.patch_head = nn.Linear(architecture.dim, FOREGROUND)
        # logsumexp over 100 patches adds log(100) = 4.6: presence starts near its prior, sigmoid(-6 + 4.6) = 0.2.
        nn.init.constant_(self.patch_head.bias, -6.0)
        self.place_head = nn.Linear(architecture.dim, PLACES)
        self._add_sine_positions(recipe.position_scale)

    @torch.no_grad()
    def _add_sine_positions(self, scale: float) -> None:
        positions = self.vit.pos_embed
        assert positions is not None  # timm's stubs allow for a ViT without positions
        grid = list(self.vit.patch_embed.grid_size)
        sines = build_sincos2d_pos_embed(grid, self.vit.embed_dim, temperature=WAVELENGTHS)
        positions[:, self.vit.num_prefix_tokens :] += scale * sines

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits for uint8 `images`: presence from the class token and from the patches, and places.

        Shapes: `(B, 28)`, `(B, 20)`, `(B, 20, 9)`. A class's place is predicted from the mean of the patches, weighted
        by the softmax of its own patch logits.
        """
        tokens = self.vit.forward_features(vit.normalize(images))
        patches = tokens[:, self.vit.num_prefix_tokens :]  # (B, patches, dim)
        patch_logits = self.patch_head(patches)  # (B, patches, 20)
        class_means = patch_logits.softmax(1).transpose(1, 2) @ patches  # (B, 20, dim)
        return self.vit.forward_head(tokens), patch_logits.logsumexp(1), self.place_head(class_means)

    def loss(self, images: Tensor, present: Tensor, place_labels: Tensor, batch_size: int) -> Tensor:
        """This process's part of the mean loss over a batch of `batch_size` scenes, from its share of them.

        Patches predict presence of classes, but not of colors. The other arguments are those of `load_example`.
        """
        class_token_logits, patch_logits, place_logits = self(images)
        presence_loss = F.binary_cross_entropy_with_logits(class_token_logits, present)
        presence_loss = presence_loss + F.binary_cross_entropy_with_logits(patch_logits, present[:, :FOREGROUND])
        place_loss = F.cross_entropy(
            place_logits.flatten(0, 1), place_labels.flatten(), ignore_index=ABSENT, reduction="sum"
        ) / processes.all_reduce((place_labels != ABSENT).sum())
        return presence_loss * (len(images) / batch_size) + self.place_weight * place_loss


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
        lambda batch: model.loss(batch[0], batch[1], batch[2], recipe.batch_size),
        lambda: evaluate(model, held_out, device),
        recipe.model_dump(),
        RESUME,
    )
    return model, architecture, state


def load_held_out(recipe: Pretrain, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """`HELD_OUT` examples, without zoom, as one batch."""
    style = replace(style, zoom=(1.0, 1.0))
    examples = [load_example(index, "pretrain_val", recipe.seed, style) for index in range(HELD_OUT)]
    images, present, place_labels = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(present), torch.stack(place_labels)


@torch.inference_mode()
def predict(model: Pretrainer, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Presence logits `(N, 28)` from the class token, and most probable places `(N, 20)`, for uint8 `images`."""
    own = processes.share(images)
    outputs = [model(batch.to(device)) for batch in own.split(100)]
    presence_logits = torch.cat([logits.cpu() for logits, _, _ in outputs])
    predicted_places = torch.cat([logits.argmax(-1).cpu() for _, _, logits in outputs])
    return processes.all_gather(presence_logits, len(images)), processes.all_gather(predicted_places, len(images))


def evaluate(model: Pretrainer, held_out: tuple[Tensor, Tensor, Tensor], device: torch.device) -> dict[str, float]:
    """Mean average precision of the 20 classes, and the share of objects whose place is right."""
    images, present, place_labels = held_out
    presence_logits, predicted_places = predict(model, images, device)
    labeled = place_labels != ABSENT
    return {
        "mAP": float(average_precision_score(present[:, :FOREGROUND], presence_logits[:, :FOREGROUND])),
        "place": (predicted_places == place_labels)[labeled].double().mean().item(),
    }


def main() -> None:
    recipe = load_section(Pretrain, "pretrain")
    device = get_device()
    model, architecture, state = pretrain(recipe, device)
    images, present, _ = load_held_out(recipe, Style(side=architecture.side))
    presence_logits, _ = predict(model.eval(), images, device)
    if not processes.is_main():
        return
    average_precision = average_precision_score(present, presence_logits, average=None)
    vit.save(FOLDER / "model.safetensors", model.vit.cpu(), architecture)
    parameters = sum(weight.numel() for weight in model.vit.parameters())
    info = CardInfo(parameters, HELD_OUT, describe_device(device))
    by_name = dict(zip(NAMES, average_precision.tolist(), strict=True))
    write_card(FOLDER, recipe, architecture, info, state, by_name)
    RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with processes.training_stage("pretrain"):
        main()
