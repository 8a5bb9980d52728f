"""Pretrain the embedded ViT on generated scenes, from image-level labels alone (no masks).

Two losses: presence of the 20 classes and 8 colors from the class token, and presence of the classes as
multiple-instance learning over patches (the logsumexp of a patch classifier's logits). Every scene is drawn
on the fly, once. A killed run goes on from its last evaluation and ends in the same weights.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from stages.core.stage import stage
from stages.core.train_state import TrainState
from stages.data.scenes import scene
from stages.data.scenes.scene import CLASSES, COLORS, Style, draw_scene
from stages.models import vit
from stages.params.pretrain import Pretrain
from stages.params.section import load_section
from stages.pretraining.training import build_optimizers, fit
from stages.pretraining.vit_card import Facts, describe, write_card

FOLDER = Path("data/checkpoints/vit_scenes")
RESUME = Path("data/resume/pretrain.pt")
HELD_OUT = 1000  # scenes by the held-out writers of the pretraining block
ZOOM = (0.9, 1.25)  # a training view shows a scene up to 300 / 256 times enlarged


class PretrainScenes(Dataset):
    """Scene `i` of a split: image `(3, side, side)` uint8 and presence `(28,)` of classes, then colors."""

    def __init__(self, writers: str, seed: int, first: int, count: int, style: Style):
        self.writers, self.seed, self.first, self.count, self.style = writers, seed, first, count, style

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        stream = list(self.writers.encode())
        rng = np.random.default_rng([self.seed, *stream, self.first + index])
        drawn = draw_scene(rng, self.writers, self.style)
        flip = rng.random() < 0.5 and self.writers == "pretrain"
        pixels = drawn.image[:, ::-1] if flip else drawn.image
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), _presence(drawn.objects)


def _presence(things: tuple[scene.SceneObject, ...]) -> Tensor:
    present = {thing.name for thing in things} | {thing.color for thing in things}
    return torch.tensor([float(name in present) for name in (*CLASSES[1:], *COLORS)])


class Pretrainer(nn.Module):
    """The ViT with a presence layer on its class token and a patch classifier for the loss alone."""

    def __init__(self, architecture: vit.Architecture):
        super().__init__()
        self.vit = vit.build(architecture)
        self.patch_head = nn.Linear(architecture.dim, len(CLASSES) - 1)
        nn.init.constant_(self.patch_head.bias, -6.0)  # logsumexp over 100 patches starts near presence's prior

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Presence logits from uint8 `images`: `(B, 28)` from the class token, `(B, 20)` from the patches."""
        tokens = self.vit.forward_features(vit.normalize(images))
        patches = self.patch_head(tokens[:, self.vit.num_prefix_tokens :])  # (B, patches, 20)
        return self.vit.forward_head(tokens), patches.logsumexp(1)


def presence_loss(outputs: tuple[Tensor, Tensor], present: Tensor) -> Tensor:
    """Binary cross entropy of both readings; the patches answer for the classes only."""
    whole, patches = outputs
    classes = patches.shape[1]
    return F.binary_cross_entropy_with_logits(whole, present) + F.binary_cross_entropy_with_logits(
        patches, present[:, :classes]
    )


def pretrain(recipe: Pretrain, device: torch.device) -> tuple[Pretrainer, vit.Architecture, TrainState]:
    """Train as `recipe` says, from the last saved evaluation where there is one of the same recipe."""
    architecture = vit.Architecture(outputs=len(CLASSES) - 1 + len(COLORS))
    style = Style(side=architecture.side, zoom=ZOOM)
    torch.manual_seed(recipe.seed)
    model = Pretrainer(architecture).to(device, memory_format=torch.channels_last)
    both = build_optimizers(model, model.vit.blocks.parameters(), recipe)
    held_out = _held_out(recipe, style)
    progress = fit(
        recipe,
        "pretrain",
        model,
        both,
        lambda first, count: PretrainScenes("pretrain", recipe.seed, first, count, style),
        lambda batch: presence_loss(model(batch[0]), batch[1]),
        lambda: {"mAP": mean_average_precision(model, held_out, device)},
        recipe.model_dump(),
        RESUME,
    )
    return model, architecture, progress


def _held_out(recipe: Pretrain, style: Style) -> tuple[Tensor, Tensor]:
    scenes = PretrainScenes("pretrain_val", recipe.seed, 0, HELD_OUT, replace(style, zoom=(1.0, 1.0)))
    images, present = zip(*DataLoader(scenes, batch_size=None, num_workers=1), strict=True)
    return torch.stack(images), torch.stack(present)


@torch.inference_mode()
def class_scores(model: Pretrainer, images: Tensor, device: torch.device) -> Tensor:
    """Class-token presence logits `(N, 28)` of uint8 images `(N, 3, side, side)`."""
    return torch.cat([model(chunk.to(device))[0].cpu() for chunk in images.split(100)])


def mean_average_precision(model: Pretrainer, held_out: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Mean over the 20 classes of the average precision of the class token's presence score."""
    images, present = held_out
    scores, classes = class_scores(model, images, device), len(CLASSES) - 1
    return float(average_precision_score(present[:, :classes], scores[:, :classes], average="macro"))


def main() -> None:
    recipe = load_section(Pretrain, "pretrain")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, architecture, progress = pretrain(recipe, device)
    held_out = _held_out(recipe, Style(side=architecture.side))
    scores = class_scores(model.eval(), held_out[0], device)
    average = average_precision_score(held_out[1], scores, average=None)
    vit.save(FOLDER / "model.safetensors", model.vit.cpu(), architecture)
    names = (*CLASSES[1:], *COLORS)
    facts = Facts(architecture, sum(weight.numel() for weight in model.vit.parameters()), HELD_OUT, describe(device))
    write_card(FOLDER, recipe, facts, progress, dict(zip(names, average.tolist(), strict=True)))
    RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with stage("pretrain"):
        main()
