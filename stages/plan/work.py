"""How often each model is called, and how long that takes here: measured now, on this machine, a few calls each.

Models have random weights where the true ones are not here; seconds do not hang on weights. A stage that cuts views
while its model is busy takes as long as the slower of the two.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from stages.captioning.caption import IMAGES
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.text_decoders import BlipDecoder
from stages.classification.pixels import augmented_view, plain_view
from stages.data.views import crop_image, random_view
from stages.image_text.pixels import train_view, val_view
from stages.image_text.towers import Towers
from stages.models import blip, vit
from stages.models.compute import MixedPrecision, get_device, mixed_precision, prepare_model
from stages.params.experiment import Experiment
from stages.params.segmentation import Head
from stages.plan.placeholder_models import Models
from stages.plan.sizes import Images
from stages.segmentation.heads import build_head
from stages.segmentation.pixel_loss import pixel_loss
from stages.segmentation.upsampling import upsample

LEAST = 1.0  # seconds that a measurement takes, at least
ON_GPU, ON_CPU = 32, 4  # views in a measured batch


@dataclass(frozen=True)
class Work:
    """`count` units of work in a stage, `each` seconds a unit, by the part that is slower."""

    stage: str
    what: str
    count: int
    each: float

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.count * self.each


def seconds_of(call: Callable[[], object], units: int = 1) -> float:
    """Seconds a unit: the median of as many calls as fit into `LEAST`, after one to warm up."""
    call()
    taken: list[float] = []
    while sum(taken) < LEAST:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) / units


def work_of(experiment: Experiment, images: Images, pets: Images, models: Models) -> Iterator[Work]:
    """Every stage that takes more than its own start; measured as it is asked for."""
    if models.backbone:
        yield from _segmentation(experiment, images, models)
    if images.captions:
        yield from _image_text(experiment, images, models)
    if models.classifier:
        yield from _classification(experiment, pets, models)


def _segmentation(experiment: Experiment, images: Images, models: Models) -> Iterator[Work]:
    task, view, photograph = experiment.segmentation, experiment.active.view, _photograph(images.sides)
    backbone, workers = models.backbone, max(1, experiment.compute.workers)
    prepare_model(backbone, experiment.compute)
    rng, short_side = np.random.default_rng(0), (view.short_side_min, view.short_side_max)
    cutting = seconds_of(lambda: crop_image(photograph, random_view(rng, *images.sides, short_side, view.crop)))
    seeing = _forward(backbone, view.crop, view.crop, experiment)
    yield Work(
        "extract_segmentation",
        f"train views of {view.crop}x{view.crop}",
        images.train * task.views,
        max(cutting / workers, seeing),
    )
    yield Work(
        "extract_segmentation", "val images, native", images.val, _forward(backbone, *images.sides, experiment, 1)
    )
    for name, head in task.heads.items():
        each = _head(head, backbone, view.crop, images.sides, task.batch_size)
        count = task.epochs * (images.train + images.val)
        yield Work(f"train_head@{name}", f"{task.epochs} epochs, train and val images", count, each)


def _head(asked: Head, backbone: vit.Backbone, crop: int, sides: tuple[int, int], batch: int) -> float:
    """Seconds an image: half of them trained on, half judged."""
    options = asked.options
    head = build_head(asked.kind, options, dim=backbone.dim, classes=21, attention_heads=backbone.heads)
    head.to(get_device())
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    tokens = torch.randn(batch, *backbone.grid(crop, crop), backbone.dim, device=get_device())
    masks = torch.randint(0, 21, (batch, crop, crop), device=get_device())
    whole = torch.randn(1, *backbone.grid(*sides), backbone.dim, device=get_device())

    def step() -> None:
        pixel_loss(head(tokens), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    def judge() -> None:
        with torch.inference_mode():
            upsample(head(whole), sides).max(-1).indices.cpu()

    return (seconds_of(step, batch) + seconds_of(judge)) / 2


def _image_text(experiment: Experiment, images: Images, models: Models) -> Iterator[Work]:
    photograph, side, workers = _photograph(images.sides), models.side, max(1, experiment.compute.workers)
    model, count = prepare_model(models.blip, experiment.compute), _at_once()
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    towers = Towers(model, None, blip.Preprocessing(side, vit.MEAN, vit.STD), experiment.compute)
    seeing = seconds_of(lambda: towers.image_states(pixels).half().cpu(), count)
    augmenting, resizing = (
        seconds_of(lambda: train_view(photograph, side, 1)),
        seconds_of(lambda: val_view(photograph, side)),
    )
    views = images.train * experiment.retrieval.views
    yield Work("encode_image_text", f"train views of {side}x{side}", views, max(augmenting / workers, seeing))
    yield Work("encode_image_text", f"val images of {side}x{side}", images.val, max(resizing / workers, seeing))
    texts = torch.randint(1, 50, (count, 14), device=get_device())
    reading = seconds_of(lambda: _read(towers, texts), count)
    yield Work("encode_image_text", "captions", images.captions, reading)
    task = experiment.captioning
    cells = [cell for cell in task.cells.values() if cell.type != "beam"]
    yield Work(
        "caption", f"captions, {len(cells)} cells an image", images.val * len(cells), _decode(experiment, models, cells)
    )


@torch.inference_mode()
def _read(towers: Towers, texts: torch.Tensor) -> None:
    with mixed_precision(towers.compute):
        towers.model.text_encoder(texts).last_hidden_state.cpu()


def _decode(experiment: Experiment, models: Models, cells: list) -> float:
    """Seconds a caption, of a few images' all cells, each written to its greatest length."""
    task, decoder = experiment.captioning, models.decoder.to(get_device())
    writer = CaptionGenerator(BlipDecoder(decoder), Lengths(task.max_length, task.max_length))
    count, dim = IMAGES if torch.cuda.is_available() else 2, models.blip.config.vision_config.hidden_size
    states = torch.randn(count, 1, models.blip_tokens, dim, device=get_device())
    chance = np.random.default_rng(0).random((count, len(cells), task.max_length))
    prompts = [[5, 6, 7]] * len(cells)
    return seconds_of(lambda: writer.sample(states, prompts, cells, chance), count * len(cells))


def _classification(experiment: Experiment, pets: Images, models: Models) -> Iterator[Work]:
    photograph, workers, measured = _photograph(pets.sides), max(1, experiment.compute.workers), {}
    network = models.classifier.vit
    for name, asked in experiment.classification.settings.items():
        setting = asked.resolved(experiment.active.classifier)
        key = (setting.size, setting.augment, setting.batch_size)
        if key not in measured:
            cut = (
                (lambda size=setting.size: augmented_view(photograph, size, 1))
                if setting.augment
                else (lambda size=setting.size: plain_view(photograph, size))
            )
            training = max(seconds_of(cut) / workers, _step(network, setting.size, setting.batch_size, experiment))
            measured[key] = training, _forward(models.classifier, setting.size, setting.size, experiment)
        training, judging = measured[key]
        yield Work(
            f"finetune@{name}", f"{setting.epochs} epochs of train images", setting.epochs * pets.train, training
        )
        yield Work(f"finetune@{name}", f"{setting.epochs} epochs of val images", setting.epochs * pets.val, judging)
    looking = 2 * _forward(models.classifier, *pets.sides, experiment, 1)  # attention is computed once more
    yield Work("class_attention", "val images, two ViTs", 2 * pets.val, looking)


def _step(network: torch.nn.Module, size: int, batch: int, experiment: Experiment) -> float:
    network.to(get_device()).requires_grad_(True).train()
    optimizer, mixed = torch.optim.Adam(network.parameters(), lr=0.0, fused=True), MixedPrecision(experiment.compute)
    pixels = torch.randn(batch, 3, size, size, device=get_device())

    def step() -> None:
        with mixed.products():
            made = network(pixels).float()
        mixed.backward(F.mse_loss(made, torch.zeros_like(made)))
        mixed.step(optimizer)

    try:
        return seconds_of(step, batch)
    finally:
        network.requires_grad_(False).eval()


@torch.inference_mode()
def _forward(
    backbone: vit.Backbone, height: int, width: int, experiment: Experiment, count: int | None = None
) -> float:
    """Seconds an image through a frozen backbone."""
    backbone.to(get_device())
    count = count or _at_once()
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)

    def see() -> None:
        with mixed_precision(experiment.compute):
            backbone(pixels.to(get_device())).patches.half().cpu()

    return seconds_of(see, count)


def _photograph(sides: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8))


def _at_once() -> int:
    return ON_GPU if torch.cuda.is_available() else ON_CPU
