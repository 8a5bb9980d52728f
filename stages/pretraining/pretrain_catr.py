"""Pretrain the shipped CATR on generated scenes with noisy captions (`stages/data/scenes/web.py`).

The loss is that of language modeling, over two captions per scene, plus those of `object_heads.py` on the cells of the
ResNet's grid: which classes a scene has, and their colors and places. These have image-level labels only and reach the
ResNet at once, while a decoder has to learn first which cells to attend to.

Scenes are enlarged as `catr.preprocess` does it, to whole pixel values: the model sees the same pixels in training and
at inference. Every scene is used once. An interrupted run resumes from its last evaluation and ends in the same
weights. Several processes share the training under `torchrun` (docs/distributed.md).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core import processes
from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.data.scenes.scene import Scene, SceneObject, Style
from stages.models import catr
from stages.models.catr import Catr, CatrConfig
from stages.models.compute import get_device
from stages.params.pretrain_catr import PretrainCatr
from stages.params.section import load_section
from stages.pretraining.batch_norm import share_batch_norm
from stages.pretraining.captioned_scenes import (
    MAX_LENGTH,
    MIN_LENGTH,
    PROMPT,
    STYLES,
    TOKENIZER,
    CaptionFunction,
    compute_metrics,
    draw_example,
    web_examples,
)
from stages.pretraining.card import CardInfo, describe_device
from stages.pretraining.catr_card import write_card
from stages.pretraining.object_heads import Labels, ObjectHeads, label_objects, object_loss, presence_loss
from stages.pretraining.training import build_optimizers, fit

FOLDER = Path("data/checkpoints/catr_scenes")
RESUME = Path("data/resume/pretrain_catr.pt")
HELD_OUT = 500  # scenes with the held-out digits of the pretraining block
LONGER_SIDE = 128  # a scene of 80 pixels has 8x8 cells of 10 pixels
IGNORED = -100  # a label that cross entropy leaves out


def small_config(layers: int) -> CatrConfig:
    """The config of the shipped CATR; `layers` are those of the encoder and of the decoder."""
    return CatrConfig(
        hidden=128,
        heads=128 // catr.HEAD_WIDTH,
        encoder_layers=layers,
        decoder_layers=layers,
        feedforward=256,
        inner=128,
        vocabulary=len(TOKENIZER),
        positions=32,
        blocks=(1, 2, 2, 1),
        expansion=1,
        longer_side=LONGER_SIDE,
        pad=TOKENIZER.pad_token_id,
        start=TOKENIZER.cls_token_id,
        end=TOKENIZER.sep_token_id,
    )


def load_example(
    index: int, writers: str, seed: int, style: Style, caption: CaptionFunction, foreign: float
) -> tuple[Tensor, ...]:
    """Scene `index` of a split: pixels `(3, LONGER_SIDE, LONGER_SIDE)` uint8, token IDs of `draw_example`, `Labels`."""
    scene, ids = draw_example(index, writers, seed, style, caption, foreign)
    return _enlarge(scene), ids, *label_objects(scene.objects, style.side)


def _enlarge(scene: Scene) -> Tensor:
    return catr.resize(Image.fromarray(scene.image), LONGER_SIDE)


class Pretrainer(nn.Module):
    """CATR with a batch norm that trains, and `ObjectHeads` on the cells of its grid."""

    def __init__(self, recipe: PretrainCatr):
        super().__init__()
        config = small_config(recipe.layers)
        self.presence_weight = recipe.presence_weight
        self.object_weight = recipe.object_weight
        self.catr = Catr(config, partial(BatchNormAct2d, apply_act=False))
        self.object_heads = ObjectHeads(config.hidden)

    @property
    def block_weights(self) -> list[Tensor]:
        """The weights of all transformer layers."""
        transformer = self.catr.transformer
        return [*transformer.encoder.layers.parameters(), *transformer.decoder.layers.parameters()]

    def loss(self, images: Tensor, ids: Tensor, labels: Labels, batch_size: int) -> Tensor:
        """This process's part of the loss over a batch of `batch_size` scenes, from its share of them.

        The arguments are those of `load_example`.
        """
        features = self.catr.features(catr.normalize(images))  # (B, rows, columns, hidden)
        predicted = self.object_heads(features)
        presence = presence_loss(predicted, labels) * (len(images) / batch_size)
        objects = object_loss(predicted, labels)
        captions = self._lm_loss(self.catr.encode(features), ids)
        return captions + self.presence_weight * presence + self.object_weight * objects

    def _lm_loss(self, memory: Tensor, ids: Tensor) -> Tensor:
        captions_per_image = ids.shape[1]
        ids = ids.flatten(0, 1)
        ids = ids[:, : int((ids != self.catr.pad).sum(1).max())]  # without the columns that are padding in every row
        image_of_row = torch.arange(len(memory), device=ids.device).repeat_interleave(captions_per_image)
        logits = self.catr.text_logits(ids[:, :-1], memory, image_of_row)
        labels = ids[:, 1:].masked_fill(ids[:, 1:] == self.catr.pad, IGNORED)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss / processes.all_reduce((labels != IGNORED).sum())


@torch.inference_mode()
def generate(model: Catr, images: Tensor) -> Tensor:
    """Token IDs `(B, MAX_LENGTH)` of greedy captions that start with `PROMPT`, for images of `load_example`."""
    memory = model.memory(catr.normalize(images))
    cache = model.new_cache(memory)
    rows = torch.arange(len(images), device=images.device)
    ids = torch.full((len(images), MAX_LENGTH), model.pad, device=images.device)
    beginning = [model.start, *TOKENIZER(PROMPT, add_special_tokens=False).input_ids]
    ids[:, : len(beginning)] = torch.tensor(beginning, device=images.device)
    logits = model.read(ids[:, : len(beginning)], cache, rows)
    ended = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for position in range(len(beginning), MAX_LENGTH):
        if position < MIN_LENGTH:
            logits[:, model.end] = -torch.inf
        ids[:, position] = logits.argmax(1).masked_fill(ended, model.pad)
        ended |= ids[:, position] == model.end
        if ended.all():
            break
        logits = model.read(ids[:, position : position + 1], cache, rows)
    return ids


@dataclass(frozen=True)
class HeldOut:
    """Held-out scenes: `images` of `load_example`, and the objects of each scene of `side` pixels."""

    images: Tensor
    objects: tuple[tuple[SceneObject, ...], ...]
    side: int


def load_held_out(recipe: PretrainCatr, style: Style, caption: CaptionFunction) -> HeldOut:
    """`HELD_OUT` scenes of a style."""
    scenes = [draw_example(index, "pretrain_val", recipe.seed, style, caption)[0] for index in range(HELD_OUT)]
    images = torch.stack([_enlarge(scene) for scene in scenes])
    return HeldOut(images, tuple(scene.objects for scene in scenes), style.side)


def evaluate(model: Pretrainer, held_out: HeldOut) -> dict[str, float]:
    """`captioned_scenes.METRICS` of greedy captions of held-out scenes."""
    device = next(model.parameters()).device
    own_images = processes.share(held_out.images)
    own_ids = torch.cat([generate(model.catr, images.to(device)) for images in own_images.split(100)])
    ids = processes.all_gather(own_ids, len(held_out.images))
    return compute_metrics(ids, held_out.objects, held_out.side)


def pretrain(recipe: PretrainCatr, device: torch.device) -> tuple[Pretrainer, TrainState]:
    """Train by `recipe`, resuming from the last evaluation of an interrupted run with the same recipe."""
    torch.manual_seed(recipe.seed)
    model = Pretrainer(recipe).to(device)
    model.to(memory_format=torch.channels_last)  # convolutions are faster
    share_batch_norm(model)
    held_out = load_held_out(recipe, web.STYLE, web.web_caption)
    state = fit(
        recipe,
        "pretrain_catr",
        model,
        build_optimizers(model, model.block_weights, recipe),
        web_examples(load_example, recipe.seed),
        lambda batch: model.loss(batch[0], batch[1], Labels(*batch[2:]), recipe.batch_size),
        lambda: evaluate(model, held_out),
        recipe.model_dump(),
        RESUME,
    )
    return model.eval(), state


def export(model: Pretrainer, recipe: PretrainCatr, state: TrainState, machine: str) -> None:
    """Evaluate a pretrained model in both styles; write weights, tokenizer and card.

    Several processes share the evaluation; the main one writes.
    """
    results = {name: evaluate(model, load_held_out(recipe, *style)) for name, style in STYLES.items()}
    if not processes.is_main():
        return
    catr.save(FOLDER, model.catr, TOKENIZER)
    parameters = sum(weight.numel() for weight in model.catr.parameters())
    write_card(FOLDER, recipe, model.catr.config, CardInfo(parameters, HELD_OUT, machine), state, results)


def main() -> None:
    recipe = load_section(PretrainCatr, "pretrain_catr")
    device = get_device()
    model, state = pretrain(recipe, device)
    export(model, recipe, state, describe_device(device))
    if processes.is_main():
        RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with processes.training_stage("pretrain_catr"):
        main()
