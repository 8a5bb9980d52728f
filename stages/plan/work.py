"""How long each stage takes on this machine: how often it calls a model, times the seconds per call, measured now.

Models may have random weights: the values do not change the seconds. While the model computes, worker processes load
the next images, so a stage takes as long as the slower of the two.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.attention.class_token import class_token_attention, resize_to_patches
from stages.captioning.caption_job import IMAGES
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.text_decoders import BlipDecoder
from stages.classification.pixels import augmented_view, plain_view
from stages.classification.training import images_per_epoch
from stages.data.views import crop_image, random_view
from stages.image_text.pixels import train_view, val_view
from stages.models import vit
from stages.models.compute import MixedPrecision, get_device, mixed_precision, prepare_model
from stages.params.compute import Compute
from stages.params.experiment import Experiment
from stages.params.segmentation import Head
from stages.plan.dataset_sizes import DatasetSize
from stages.plan.placeholder_models import Models
from stages.segmentation.heads import build_head
from stages.segmentation.pixel_loss import pixel_loss
from stages.segmentation.upsampling import upsample

MIN_SECONDS = 1.0  # per measurement
GPU_BATCH = 32  # images, enough to keep a GPU busy
CPU_BATCH = 4
CLASSES = 21  # of a measured head: VOC's, and the generated scenes'


@dataclass(frozen=True)
class Work:
    """`count` units of work of a stage, each of which takes `unit_seconds`."""

    stage: str
    description: str
    count: int
    unit_seconds: float

    @property
    def seconds(self) -> float:
        """The time for all units."""
        return self.count * self.unit_seconds


def measure(call: Callable[[], object], units: int = 1) -> float:
    """Seconds per unit: the median over the calls that fit into `MIN_SECONDS`, after one to warm up."""
    call()
    seconds: list[float] = []
    while sum(seconds) < MIN_SECONDS:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) / units


def measure_loading(call: Callable[[], object], compute: Compute) -> float:
    """Seconds per image of `call`, shared by the worker processes; without workers, the main process loads."""
    return measure(call) / max(1, compute.workers)


def measure_inference(run: Callable[[Tensor], Tensor], inputs: Tensor, compute: Compute) -> float:
    """Seconds per input of a frozen model's call `run`, with the copies to and from its device."""

    @torch.inference_mode()
    def call() -> None:
        with mixed_precision(compute):
            run(inputs.to(get_device())).cpu()

    return measure(call, len(inputs))


def measure_vit(backbone: vit.Backbone, pixels: Tensor, compute: Compute) -> float:
    """Seconds per image of a ViT's forward pass."""
    return measure_inference(lambda pixels: backbone(pixels).patches.half(), pixels, compute)


def measure_training(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], compute: Compute) -> float:
    """Seconds per input of a training step."""
    model.to(get_device()).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    mixed = MixedPrecision(compute)
    inputs = inputs.to(get_device())

    def step() -> None:
        with mixed.products():
            outputs = model(inputs).float()
        mixed.backward(loss(outputs))
        mixed.step(optimizer)

    try:
        return measure(step, len(inputs))
    finally:
        model.requires_grad_(False).eval()


def measure_work(experiment: Experiment, images: DatasetSize, labeled: DatasetSize, models: Models) -> Iterator[Work]:
    """The work of all stages that take more than seconds; each is measured when the iterator reaches it."""
    task = experiment.segmentation
    if models.backbone:
        yield from tokens_work("extract_segmentation", experiment, images, models.backbone)
        yield from heads_work("train_head@", task.heads, experiment, images, models.backbone)
    for name, backbone in models.compared.items():
        if backbone:
            yield from tokens_work(f"extract_backbone@{name}", experiment, images, backbone)
            heads = {head: task.heads[head] for head in task.compare}
            yield from heads_work(f"train_backbone@{name}-", heads, experiment, images, backbone)
    if images.captions:
        yield from encoding_work(experiment, images, models)
        if any(cell.type != "beam" for cell in experiment.captioning.cells.values()):
            yield captioning_work(experiment, images, models)
    if models.classifier:
        yield from classification_work(experiment, labeled, models.classifier)


def tokens_work(stage: str, experiment: Experiment, images: DatasetSize, backbone: vit.Backbone) -> Iterator[Work]:
    """Tokens of train views and val images."""
    view = experiment.active.view
    compute = experiment.compute
    crop = view.crop
    prepare_model(backbone, compute)

    image = random_image(images.image_size)
    rng = np.random.default_rng(0)
    short_side = (view.short_side_min, view.short_side_max)
    load = measure_loading(lambda: crop_image(image, random_view(rng, *images.image_size, short_side, crop)), compute)
    encode = measure_vit(backbone, random_pixels((crop, crop)), compute)
    views = images.train * experiment.segmentation.views
    yield Work(stage, f"train views of {crop}x{crop}", views, max(load, encode))
    encode = measure_vit(backbone, random_pixels(images.image_size, count=1), compute)
    yield Work(stage, "val images, native", images.val, encode)


def heads_work(
    stage: str, heads: dict[str, Head], experiment: Experiment, images: DatasetSize, backbone: vit.Backbone
) -> Iterator[Work]:
    """One training per head and seed; `stage` is the beginning of the stages' names."""
    task = experiment.segmentation
    crop = experiment.active.view.crop
    compute = experiment.compute.model_copy(update={"precision": "float32"})  # heads are always trained in float32
    tokens = torch.randn(task.batch_size, *backbone.grid(crop, crop), backbone.dim)
    masks = torch.randint(0, CLASSES, (task.batch_size, crop, crop), device=get_device())
    val_tokens = torch.randn(1, *backbone.grid(*images.image_size), backbone.dim)
    for name, params in heads.items():
        head = build_head(
            params.kind, params.options, dim=backbone.dim, classes=CLASSES, attention_heads=backbone.heads
        )
        train = measure_training(head, tokens, partial(pixel_loss, masks=masks), compute)
        predict = partial(predict_mask, head, images.image_size)
        evaluate = measure_inference(predict, val_tokens, compute)
        for seed in task.seeds:
            yield epochs_work(f"{stage}{name}-{seed}", task.epochs, images, train, evaluate)


def epochs_work(stage: str, epochs: int, images: DatasetSize, train: float, evaluate: float) -> Work:
    """Epochs that train on the train images and evaluate on the val images, from the seconds per image of each."""
    count = images.train + images.val
    mean = (images.train * train + images.val * evaluate) / count
    return Work(stage, f"{epochs} epochs, train and val images", epochs * count, mean)


def predict_mask(head: nn.Module, size: tuple[int, int], tokens: Tensor) -> Tensor:
    """The predicted classes `(B, H, W)` at full size."""
    return upsample(head(tokens), size).max(-1).indices


def encoding_work(experiment: Experiment, images: DatasetSize, models: Models) -> Iterator[Work]:
    """BLIP's image tower over train views and val images; reading the captions takes seconds."""
    compute = experiment.compute
    side = models.side
    tower = models.blip.vision_model
    prepare_model(tower, compute)
    image = random_image(images.image_size)
    pixels = random_pixels((side, side))
    encode = measure_inference(lambda pixels: tower(pixels.float()).last_hidden_state.half(), pixels, compute)
    views = images.train * experiment.retrieval.views
    load = measure_loading(lambda: train_view(image, side, 1, experiment.retrieval.augment_probability), compute)
    yield Work("encode_image_text", f"train views of {side}x{side}", views, max(load, encode))
    load = measure_loading(lambda: val_view(image, side), compute)
    yield Work("encode_image_text", f"val images of {side}x{side}", images.val, max(load, encode))


def captioning_work(experiment: Experiment, images: DatasetSize, models: Models) -> Work:
    """All cells and seeds except beam search on a few images; every caption gets the greatest length."""
    task = experiment.captioning
    cells = [task.cells[name] for name, _ in task.runs if task.cells[name].type != "beam"]  # one per run
    batch_size = IMAGES if torch.cuda.is_available() else 2
    model = models.blip.text_decoder
    model.to(get_device())  # type: ignore[arg-type]  # transformers wraps `to` in an untyped decorator
    generator = CaptionGenerator(BlipDecoder(model), Lengths(task.max_length, task.max_length))
    states = torch.randn(batch_size, 1, models.blip_tokens, models.blip_dim, device=get_device())
    uniform = np.random.default_rng(0).random((batch_size, len(cells), task.max_length))
    prompts = [[5, 6, 7]] * len(cells)  # any three tokens
    seconds = measure(lambda: generator.sample(states, prompts, cells, uniform), batch_size * len(cells))
    return Work("caption", f"captions, {len(cells)} per image", images.val * len(cells), seconds)


def classification_work(experiment: Experiment, images: DatasetSize, classifier: vit.Backbone) -> Iterator[Work]:
    """Fine-tuning under every setting with every seed, then the class token's attention of two ViTs."""
    compute = experiment.compute
    image = random_image(images.image_size)

    @cache  # settings may share these
    def measure_setting(size: int, augment: bool, batch_size: int) -> tuple[float, float]:
        """Seconds per train and per val image."""
        load = partial(augmented_view, image, size, seed=1) if augment else partial(plain_view, image, size)
        dtype = torch.float64 if experiment.active.classifier.float64 else torch.float32
        pixels = torch.randn(batch_size, 3, size, size, dtype=dtype)
        network = deepcopy(classifier.vit).to(dtype)
        step = measure_training(network, pixels, lambda outputs: outputs.square().mean(), compute)
        train = max(measure_loading(load, compute), step)
        return train, measure_vit(classifier, random_pixels((size, size)), compute)

    for name, params in experiment.classification.settings.items():
        setting = params.resolved(experiment.active.classifier)
        train, evaluate = measure_setting(setting.size, setting.augment, setting.batch_size)
        used = replace(images, train=images_per_epoch(images.train, setting))
        for seed in experiment.classification.seeds:
            yield epochs_work(f"finetune@{name}-{seed}", setting.epochs, used, train, evaluate)
    if classifier.has_class_token:
        yield attention_work(experiment, images, classifier)


def attention_work(experiment: Experiment, images: DatasetSize, classifier: vit.Backbone) -> Work:
    """The class token's attention of two ViTs on the val images, all of which are taken to have masks.

    One image at a time, as neighboring photos rarely have the same shape.
    """
    params = experiment.attention.class_token
    count = images.val if params.images == "all" else min(params.images, images.val)
    image = random_image(images.image_size)
    side = experiment.active.classifier.size.base
    classifier.to(get_device())

    def compute_maps() -> None:
        pixels = resize_to_patches(image, side, classifier.patch)
        class_token_attention(classifier, [pixels], params.block, params.rollout)

    return Work("class_attention", "val images, two ViTs", 2 * count, measure(compute_maps))


def random_image(size: tuple[int, int]) -> Image.Image:
    """A noise image of `size` (height, width)."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def random_pixels(size: tuple[int, int], count: int | None = None) -> Tensor:
    """A batch of noise images `(count, 3, *size)` uint8, by default as many as a frozen model gets per call."""
    count = count or (GPU_BATCH if torch.cuda.is_available() else CPU_BATCH)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
