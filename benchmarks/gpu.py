"""Measure a GPU on the true sizes: images/s, captions/s and seconds of every heavy part, and the share of its peak.

    python -m benchmarks.gpu --precision bfloat16 --compile --workers 16
    python -m benchmarks.gpu --small          tiny models, to try it on a CPU

Weights are random: values do not change the seconds. Sizes are those of the paper profile: ViT-S/16 at 256x256,
BLIP-base at 384x384, ViT-B/16 at 224x224.

- Raw forward: batches that are on the device already, launched ahead of it.
- Extraction: the pipeline's own `extract_shards`, from images to parquet. Decoded ahead: the worker processes have
  the pixels in memory. With JPEG decoding: they decode, resize and crop. The clock starts at the first forward pass, so
  the start of the worker processes, which a long extraction pays once, is not counted. At most 32 views of 256x256 go
  into a batch (`PIXELS` in `stages/segmentation/extract.py`), whatever `--batch-size`.
- Captioning: `benchmarks.captioning`, all cells of params.yaml with one seed. The decoders of `generate` and of the
  pipeline run in float32 whatever the precision, with images encoded in it by the pipeline.
- Retrieval grid: `benchmarks.retrieval` at full size, all rows of Table 5 with all seeds, evaluated after every epoch.
- Fine-tuning: the pipeline's `train_step` on batches in memory, and its `train_epoch` on images, in the batches of
  `classification.settings.base` and in those of `--batch-size`.

Share of peak: floating-point operations that torch counts, times the rate, over the GPU's peak for bfloat16 without
sparsity; that of a float32 run is over this peak, too.
"""

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import BlipConfig, BlipForImageTextRetrieval

from benchmarks import captioning, retrieval
from benchmarks.segmentation import clocked, make_scenes
from stages.classification import classifier
from stages.classification.pixels import ImageViews
from stages.classification.training import train_epoch, train_step
from stages.data.dataset import MappedDataset
from stages.data.manifest import Row
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata
from stages.image_text.towers import Towers, load_towers
from stages.models import blip, vit
from stages.models.compute import MixedPrecision, get_device, mixed_precision, prepare_model
from stages.params.compute import Compute
from stages.params.experiment import Experiment, load_experiment
from stages.params.profiles import ViewParams
from stages.plan.work import measure
from stages.report.tables import Table
from stages.segmentation.extract import BATCH, RowView, SegmentationJob, load_pixels, train_views, view_keys

# TFLOP/s of bfloat16 without sparsity, by the name that torch gives the GPU. NVIDIA's data sheets print twice as much
# for H100, H200 and L4, "with sparsity". https://www.nvidia.com/en-us/data-center/h100/ (and h200, a100, l4)
PEAK = {
    r"\bH100 80GB HBM3": 989.0,  # SXM; the PCIe and NVL cards are slower
    r"\bH200(?! NVL)": 989.0,
    r"\bA100": 312.0,
    r"\bL4\b": 121.0,
}
LABELS = tuple(f"label {index}" for index in range(37))  # of Oxford-IIIT Pet
LAUNCHED = 10  # batches per measured call on a GPU, so that it does not wait for the next launch
SHARD = 512  # views, as in the pipeline


@dataclass(frozen=True)
class Sizes:
    """What is measured at full size, or tiny with `--small`."""

    small: bool
    experiment: Experiment
    jpeg_side: int  # pixels of the drawn images
    finetuning_side: int
    views: ViewParams

    def new_backbone(self) -> vit.Backbone:
        """The ViT whose tokens are extracted."""
        torch.manual_seed(0)
        if self.small:
            return vit.Backbone(vit.build(vit.Architecture()))
        return vit.Backbone(timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True))

    def new_classifier(self) -> classifier.Classifier:
        """The ViT that is fine-tuned, with a new classification layer."""
        torch.manual_seed(0)
        if self.small:
            network = vit.build(vit.Architecture())
        else:
            network = timm.create_model("vit_base_patch16_224", num_classes=0, dynamic_img_size=True)
        return classifier.build(vit.Backbone(network), "benchmark", LABELS, self.finetuning_side)

    def captioning_setup(self, folder: Path, images: int) -> captioning.Setup:
        """BLIP with images and prompts. One seed: `generate` decodes every cell once."""
        task = self.experiment.captioning
        task = task.model_copy(update={"seeds": task.seeds[:1]})
        experiment = self.experiment.model_copy(update={"captioning": task})
        build = captioning.embedded_setup if self.small else captioning.paper_setup
        return build(experiment, folder, images)

    def retrieval_towers(self, compute: Compute) -> Towers:
        """A BLIP whose projections have the shapes to train."""
        if self.small:
            source = self.experiment.embedded.blip
            return load_towers(source, compute)
        torch.manual_seed(0)
        config = BlipConfig(vision_config={"initializer_range": 0.02})  # the default of 1e-10 is for checkpoints
        model = BlipForImageTextRetrieval(config).eval().requires_grad_(False).to(get_device())
        return Towers(model, None, blip.Preprocessing(config.vision_config.image_size, vit.MEAN, vit.STD), compute)


def full_sizes() -> Sizes:
    # Scenes can be no larger. They have 94 % of the pixels of VOC's photographs of 500x375.
    experiment = load_experiment()
    return Sizes(False, experiment, jpeg_side=420, finetuning_side=224, views=experiment.paper.view)


def small_sizes() -> Sizes:
    """Tiny models, one epoch of the retrieval grid with one seed."""
    experiment = load_experiment()
    task = experiment.retrieval
    grid = {name: row.model_copy(update={"epochs": 1}) for name, row in task.grid.items()}
    task = task.model_copy(update={"grid": grid, "seeds": task.seeds[:1]})
    experiment = experiment.model_copy(update={"retrieval": task})
    return Sizes(True, experiment, jpeg_side=80, finetuning_side=80, views=experiment.embedded.view)


@dataclass(frozen=True)
class Result:
    """One row of the table. `flops` is per unit of `rate`, or of the whole if `rate` is in seconds."""

    name: str
    rate: float
    unit: str
    flops: float = 0.0
    ratio: float | None = None
    goal: str = ""

    def share(self, peak: float | None) -> str:
        """The share of a peak in TFLOP/s."""
        if peak is None or not self.flops:
            return "-"
        per_second = self.flops / self.rate if self.unit == "s" else self.flops * self.rate
        return f"{per_second / (peak * 1e12):.1%}"


def known_peak(name: str) -> float | None:
    """The peak of a GPU in TFLOP/s by its name, None if it is not known."""
    return next((peak for pattern, peak in PEAK.items() if re.search(pattern, name)), None)


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call's matrix products, convolutions and attention, backward passes included."""
    # Fused attention has a kernel per device, and torch does not count all of them; the plain one is matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def synchronize() -> None:
    """Wait until the GPU has computed all that was launched."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def measure_forward(model: Callable[[Tensor], object], pixels: Tensor, compute: Compute) -> float:
    """Images per second of a frozen model, for a batch that is on its device."""
    launched = LAUNCHED if torch.cuda.is_available() else 1

    def call() -> None:
        with mixed_precision(compute):
            for _ in range(launched):
                model(pixels)

    return 1 / measure(call, launched * len(pixels))


@contextmanager
def first_call(model: nn.Module) -> Iterator[list[float]]:
    """Within the context, collect when `model` was called."""
    times: list[float] = []
    handle = model.register_forward_pre_hook(lambda _module, _args: times.append(time.perf_counter()))
    yield times
    handle.remove()


@dataclass
class DecodedJob(SegmentationJob):
    """Extraction from pixels in memory: those of the first view of each image, for all of its views."""

    def __post_init__(self):
        first_views = [view for view in self.views if view[1] == 0]
        self.pixels = {view[0].image_id: load_pixels(view) for view in first_views}

    @property
    def dataset(self) -> MappedDataset[RowView]:
        return MappedDataset(self.views, lambda view: self.pixels[view[0].image_id])


def measure_extraction(job: SegmentationJob) -> float:
    """Views per second of the pipeline's extraction, from images to parquet files."""
    with tempfile.TemporaryDirectory() as name:
        shards = Shards(Path("train"), view_keys(job.views), vars(job.metadata), size=SHARD, waiting=Path(name))
        with first_call(job.backbone) as times:
            extract_shards(job, shards, job.compute, "extract")
        return len(job.views) / (time.perf_counter() - times[0])


def segmentation_results(sizes: Sizes, rows: tuple[Row, ...], compute: Compute, args) -> Iterator[Result]:
    """Raw forward pass and extraction of segmentation tokens."""
    backbone = sizes.new_backbone()
    side = sizes.views.crop
    views = train_views(rows, args.views, sizes.views, seed=1)
    name = f"ViT of {side}x{side}"
    backbone.to(get_device())
    pixels = torch.randint(0, 256, (args.batch_size, 3, side, side), dtype=torch.uint8, device=get_device())
    with torch.inference_mode():
        flops = count_flops(lambda: backbone(pixels[:1]))
    prepare_model(backbone, compute)
    raw = measure_forward(backbone, pixels, compute)
    yield Result(f"{name}: raw forward", raw, "images/s", flops)
    metadata = FeatureMetadata("benchmark", "", "", backbone.dim, backbone.heads, "", "")
    rate = measure_extraction(DecodedJob(backbone, views, metadata, compute, args.batch_size))
    yield Result("extraction, decoded ahead", rate, "images/s", flops, rate / raw, ">= 0.85")
    rate = measure_extraction(SegmentationJob(backbone, views, metadata, compute, args.batch_size))
    name = f"extraction, JPEG decoded by {compute.workers} processes"
    yield Result(name, rate, "images/s", flops, rate / raw, ">= 0.60 (16 cores)")


def captioning_results(sizes: Sizes, folder: Path, compute: Compute, args) -> Iterator[Result]:
    """BLIP's raw image tower, then all cells of the captioning grid against `generate` for every cell."""
    setup = sizes.captioning_setup(folder, args.caption_images)
    tower = setup.towers.model.vision_model
    side = setup.towers.pixels.side
    pixels = torch.randn(args.batch_size, 3, side, side, device=setup.towers.device)
    with torch.inference_mode():
        flops = count_flops(lambda: tower(pixels[:1]))
    # Before layers are compiled. The captions of the timed run are the same, as their random numbers are.
    grid_flops = count_flops(lambda: captioning.run_ours(setup, folder, {}, Counter()))
    captioning.warm_up(setup, folder)
    prepare_model(tower, compute)
    rate = measure_forward(tower, pixels, compute)
    yield Result(f"BLIP of {side}x{side}: raw forward of the image tower", rate, "images/s", flops)

    seconds: dict[str, float] = {}
    captions = args.caption_images * len(setup.task.cells)
    parts: dict[str, float] = {}
    captioning.run_ours(setup, folder, parts, Counter())
    grid_rate = captions / sum(parts.values())
    for variant, use_cache in (("without", False), ("with", True)):
        with clocked(seconds, variant):
            captioning.run_baseline(setup, use_cache)
        rate = captions / seconds[variant]
        yield Result(f"generate per cell, {variant} key-value cache", rate, "captions/s")
        name = f"captioning grid of {len(setup.task.cells)} cells, against that"
        flops = grid_flops / captions
        yield Result(name, grid_rate, "captions/s", flops, grid_rate / rate, ">= 20")


def retrieval_results(sizes: Sizes, compute: Compute) -> Iterator[Result]:
    """All rows of the retrieval grid with all seeds, trained side by side on random states, with evaluations."""
    towers = sizes.retrieval_towers(compute)
    experiment = sizes.experiment
    pairs, val = retrieval.random_states(towers, experiment.retrieval.views)

    def new_grid(**changes) -> list[retrieval.ProjectionTraining]:
        trainings = retrieval.new_tables(experiment, towers, len(experiment.retrieval.seeds))[1]
        return [replace(run, params=run.params.model_copy(update=changes)) for run in trainings]

    epoch_flops = count_flops(lambda: retrieval.train(new_grid(epochs=1), pairs, val.metrics))  # warms up as well
    trainings = new_grid()
    # Runs of one batch size are one stack, which trains as long as its longest run.
    epochs = max(run.params.epochs for run in trainings)
    synchronize()
    start = time.perf_counter()
    retrieval.train(trainings, pairs, val.metrics)
    synchronize()
    seconds = time.perf_counter() - start
    yield Result(f"retrieval grid, {len(trainings)} runs of {len(pairs)} pairs", seconds, "s", epochs * epoch_flops)


def finetuning_results(sizes: Sizes, rows: tuple[Row, ...], compute: Compute, args) -> Iterator[Result]:
    """Training steps on batches in memory, then an epoch with its images."""
    setting = sizes.experiment.classification.settings["base"].resolved(sizes.experiment.paper.classifier)
    side = sizes.finetuning_side
    model = sizes.new_classifier().to(get_device()).train()
    mixed = MixedPrecision(compute)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)

    def new_step(batch_size: int) -> Callable[[], float]:
        """A training step on random pixels in memory, which are pinned for a GPU as the loader does."""
        pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
        labels = torch.arange(batch_size) % len(LABELS)
        if torch.cuda.is_available():
            pixels = pixels.pin_memory()
            labels = labels.pin_memory()
        return lambda: train_step(model, optimizer, [(pixels, labels)], batch_size, mixed)

    flops = count_flops(new_step(1))
    prepare_model(model, compute)
    for batch_size in dict.fromkeys((setting.batch_size, args.batch_size)):
        step = new_step(batch_size)
        rate = 1 / measure(step, batch_size)
        yield Result(f"fine-tuning at {side}x{side}, batches of {batch_size}, decoded ahead", rate, "images/s", flops)
    # An epoch sees every image several times, so that it outlasts the start of the worker processes.
    labeled = [replace(row, label=number % len(LABELS)) for number, row in enumerate(rows)] * args.views
    images = ImageViews(labeled, side)
    order = torch.randperm(len(images))
    batches = setting.model_copy(update={"batch_size": args.batch_size, "accumulate": 1})
    with first_call(model) as times, tqdm(total=len(images), disable=True) as bar:
        train_epoch(model, optimizer, images, order, batches, mixed, bar)
    synchronize()
    rate = len(images) / (time.perf_counter() - times[0])
    name = f"fine-tuning, batches of {args.batch_size}, JPEG decoded by {compute.workers} processes"
    yield Result(name, rate, "images/s", flops)


def measure_all(sizes: Sizes, compute: Compute, args) -> Iterator[Result]:
    """All rows of the table, each measured when the iterator reaches it."""
    # The baseline of captioning loads images in as many processes as the rest.
    with tempfile.TemporaryDirectory() as name, patch.object(captioning, "COMPUTE", compute):
        folder = Path(name)
        rows = make_scenes(folder, args.images, 0, sizes.jpeg_side)["train"]
        yield from segmentation_results(sizes, rows, compute, args)
        yield from captioning_results(sizes, folder, compute, args)
        yield from retrieval_results(sizes, compute)
        yield from finetuning_results(sizes, rows, compute, args)


def results_table(results: list[Result], peak: float | None) -> Table:
    """The rows as printed."""
    cells = []
    for result in results:
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        rate = f"{result.rate:.4g} {result.unit}"
        cells.append((result.name, rate, ratio, result.goal, result.share(peak)))
    title = "Ratio: to the raw forward pass, or to `generate`"
    return Table.from_rows(title, ("What", "Measured", "Ratio", "Goal", "Share of peak"), cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models and few images, to try it on a CPU")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--compile", action="store_true", help="compile frozen models, and the fine-tuned one")
    parser.add_argument("--workers", type=int, default=2, help="data loading processes, at least 1 (2)")
    parser.add_argument("--batch-size", type=int, default=None, help=f"images ({BATCH}; 4 with --small)")
    parser.add_argument("--images", type=int, default=None, help="drawn images (128; 8 with --small)")
    parser.add_argument("--views", type=int, default=None, help="views of each image (128; 2 with --small)")
    parser.add_argument("--caption-images", type=int, default=None, help="images to caption (128; 2 with --small)")
    parser.add_argument("--peak", type=float, default=None, metavar="TFLOPS", help="of the device, if not known")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error("--workers: at least 1")
    full_or_small = {"batch_size": (BATCH, 4), "images": (128, 8), "views": (128, 2), "caption_images": (128, 2)}
    for option, (full, small) in full_or_small.items():
        if getattr(args, option) is None:
            setattr(args, option, small if args.small else full)
    torch.set_flush_denormal(True)
    sizes = small_sizes() if args.small else full_sizes()
    device = get_device()
    is_gpu = device.type == "cuda"
    # On a CPU, 16-bit products are slow or emulated.
    precision = args.precision or ("bfloat16" if is_gpu else "float32")
    compute = Compute(precision=precision, compile=args.compile, workers=args.workers, live=False)
    device_name = torch.cuda.get_device_name() if is_gpu else "cpu"
    peak = args.peak or (known_peak(device_name) if is_gpu else None)
    print(
        f"device {device_name} ({torch.get_num_threads()} CPU threads), torch {torch.__version__}, {precision}"
        f"{', compiled' if args.compile else ''}, peak {f'{peak:g} TFLOP/s' if peak else 'unknown (--peak)'}\n"
        f"{args.images} images of {sizes.jpeg_side}x{sizes.jpeg_side}, {args.views} views of each, batches of "
        f"{args.batch_size}; {args.caption_images} images to caption"
    )
    if args.small:
        print("--small: tiny models. These numbers say nothing about the goals.")
    results = list(tqdm(measure_all(sizes, compute, args), "measure", unit="row", leave=False))
    print("", results_table(results, peak).plain(), sep="\n")


if __name__ == "__main__":
    main()
