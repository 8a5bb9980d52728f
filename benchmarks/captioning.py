"""Time all captioning cells: transformers' `generate` per cell (baseline) against our batched decoding.

    python -m benchmarks.captioning                 the embedded BLIP
    python -m benchmarks.captioning --paper         BLIP-base at 384x384, random weights

The baseline encodes the images again for every cell, and reads the image and the whole text anew for every token. A
second baseline keeps keys and values (`use_cache`), still cell by cell, which separates the two savings. Ours encodes
each image once, into the float16 table of the pipeline, and decodes all cells with prompts of equal length in one
batch. All run on the same images with the same BLIP. Hooks count images encoded and tokens read, prompts included.

Captions of deterministic cells (greedy, or K = 1) are compared; those that differ are generated once more from float32
states. Sampling cells draw other random numbers than `generate`, so their captions may differ in length. With random
weights (`--paper`) few captions end before the maximum length.

Prints seconds, ratios, counts, and ours by part.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BlipConfig, BlipForConditionalGeneration

from benchmarks.segmentation import COMPUTE, clocked, make_scenes
from stages.captioning.caption_job import IMAGES, decode_batch
from stages.captioning.captioner import Captioner
from stages.captioning.decoding import CaptionGenerator, Lengths, caption_tokens
from stages.captioning.text_decoders import BlipDecoder
from stages.data.manifest import Row
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.image_text.decoder_states import BlipStatesJob
from stages.image_text.pixels import val_dataset
from stages.image_text.towers import Towers
from stages.models import blip, vit
from stages.models.compute import get_device
from stages.params.captioning import Captioning, Cell
from stages.params.experiment import Experiment, load_experiment

BASELINE_BATCH = 16  # images
PAPER_PROMPT = 3  # tokens: the original's prompts are three common words each

Captions = dict[str, list[list[int]]]  # token IDs without the prompt, by cell, in the order of the images


@dataclass(frozen=True)
class Setup:
    """What all variants share. `towers.model` is the captioner; retrieval has the same image tower."""

    towers: Towers
    rows: tuple[Row, ...]
    prompts: dict[str, list[int]]
    experiment: Experiment

    @property
    def task(self) -> Captioning:
        return self.experiment.captioning

    def new_generator(self) -> CaptionGenerator:
        """The pipeline's generator, without its float64 copy yet."""
        lengths = Lengths(self.task.min_length, self.task.max_length)
        return CaptionGenerator(BlipDecoder(self.towers.model.text_decoder), lengths)

    def to_text(self, caption: list[int]) -> str:
        """A readable caption: words if there is a tokenizer."""
        return self.towers.tokenizer.decode(caption) if self.towers.tokenizer else " ".join(map(str, caption))


def embedded_setup(experiment: Experiment, folder: Path, images: int) -> Setup:
    source = experiment.embedded.blip
    model = blip.load(BlipForConditionalGeneration, source).to(get_device())
    towers = Towers(model, blip.load_tokenizer(source), blip.load_preprocessing(source), COMPUTE)
    rows = make_scenes(folder, 0, images, towers.pixels.side)["val"]
    captioner = Captioner(source, BlipDecoder(model.text_decoder), towers.tokenizer)
    return Setup(towers, rows, captioner.prompts(experiment.captioning), experiment)


def paper_setup(experiment: Experiment, folder: Path, images: int) -> Setup:
    """BLIP-base's shape. Prompts are made-up token IDs: all of one length cost the same, so no tokenizer is needed."""
    torch.manual_seed(0)
    config = BlipConfig(vision_config={"initializer_range": 0.02})  # the default of 1e-10 is for checkpoints
    model = BlipForConditionalGeneration(config).eval().requires_grad_(False)
    side = config.vision_config.image_size
    towers = Towers(model.to(get_device()), None, blip.Preprocessing(side, vit.MEAN, vit.STD), COMPUTE)
    prompts = {}
    for index, prompt in enumerate(sorted({cell.prompt for cell in experiment.captioning.cells.values()})):
        first = 2000 + 10 * index
        prompts[prompt] = list(range(first, first + PAPER_PROMPT))
    return Setup(towers, make_scenes(folder, 0, images, side)["val"], prompts, experiment)


def generate_options(cell: Cell) -> dict[str, object]:
    """A cell as options of `generate`, whose own default K is 50."""
    if cell.type == "greedy":
        return {"do_sample": False}
    if cell.type == "beam":
        return {"do_sample": False, "num_beams": cell.beams}
    return {"do_sample": True, "temperature": cell.temperature, "top_k": cell.k or 0, "top_p": cell.p or 1.0}


@torch.inference_mode()
def run_baseline(setup: Setup, use_cache: bool) -> Captions:
    """Every cell on its own, from pixels. One pool of loading workers serves all cells."""
    towers = setup.towers
    config = towers.model.config.text_config
    dataset = val_dataset(setup.rows, towers.pixels.side)
    loader = DataLoader(dataset, BASELINE_BATCH, num_workers=COMPUTE.workers, persistent_workers=True)
    captions: Captions = {}
    for name, cell in setup.task.cells.items():
        torch.manual_seed(0)
        prompt = [config.bos_token_id, *setup.prompts[cell.prompt], config.sep_token_id]
        captions[name] = []
        for _, pixels in loader:
            sequences = towers.model.generate(
                pixel_values=vit.normalize(pixels.to(towers.device), towers.pixels.mean, towers.pixels.std),
                # A new tensor each time: `generate` writes to it. It drops the last column, the end token, itself.
                input_ids=torch.tensor([prompt] * len(pixels), device=towers.device),
                min_length=setup.task.min_length,
                max_length=setup.task.max_length,
                use_cache=use_cache,
                **generate_options(cell),
            )
            for sequence in sequences.tolist():
                captions[name].append(caption_tokens(sequence, len(prompt) - 1, config.sep_token_id))
    return captions


def encode(setup: Setup, folder: Path) -> None:
    """Write the hidden states of every image to a table in `folder`."""
    config = setup.towers.model.config.vision_config
    metadata = FeatureMetadata("benchmark", "", "", config.hidden_size, config.num_attention_heads, "", "")
    keys = [(row.image_id, 0) for row in setup.rows]
    shards = Shards(folder / "val", keys, vars(metadata), waiting=folder / "waiting")
    extract_shards(BlipStatesJob(setup.towers, setup.rows, metadata), shards, setup.towers.compute, "encode")
    shards.commit()


def run_ours(setup: Setup, folder: Path, seconds: dict[str, float], counts: Counter) -> Captions:
    """The pipeline's functions, from pixels to token IDs; adds seconds by part, and float64 choices to `counts`."""
    with clocked(seconds, "encode"):
        encode(setup, folder)
    with clocked(seconds, "decode"):
        generator = setup.new_generator()
        generator.decoder.model_float64.register_forward_pre_hook(
            lambda _module, args: counts.update(float64=len(args[0]))
        )
        captions: Captions = {name: [] for name, _ in setup.experiment.captioning.runs}
        for batch in FeatureTable(folder / "val").batches(IMAGES):
            states = torch.stack([view.tokens for view in batch])
            image_ids = [view.image_id for view in batch]
            for image in decode_batch(generator, image_ids, states, setup.prompts, setup.experiment):
                for sequences, tokens in zip(captions.values(), image, strict=True):
                    sequences.append(tokens)
    return captions


@contextmanager
def count_inputs(model: BlipForConditionalGeneration) -> Iterator[Counter]:
    """Count the images that the tower encodes and the tokens that the decoder reads."""
    counts: Counter = Counter()

    def count_images(_module: nn.Module, _args: tuple, states: Tensor) -> None:
        counts["images"] += len(states)

    def count_tokens(_module: nn.Module, _args: tuple, states: Tensor) -> None:
        counts["tokens"] += states.shape[0] * states.shape[1]

    hooks = [
        model.vision_model.embeddings.register_forward_hook(count_images),
        model.text_decoder.bert.embeddings.register_forward_hook(count_tokens),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def warm_up(setup: Setup, folder: Path) -> None:
    """Generate one short caption with every variant, so that imports on first use are not timed."""
    name, cell = next(iter(setup.task.cells.items()))
    task = setup.task.model_copy(update={"min_length": 1, "max_length": 6, "cells": {name: cell}})
    experiment = setup.experiment.model_copy(update={"captioning": task})
    small = replace(setup, rows=setup.rows[:1], experiment=experiment)
    run_baseline(small, use_cache=True)
    run_ours(small, folder, {}, Counter())


def compare(name: str, baseline: Captions, captions: Captions, setup: Setup) -> None:
    """Print how many captions of deterministic cells equal the baseline's, and those that do not."""
    deterministic = [cell for cell, params in setup.task.cells.items() if params.type == "greedy" or params.k == 1]
    total = len(deterministic) * len(setup.rows)
    differences = []
    for cell in deterministic:
        for row, expected, caption in zip(setup.rows, baseline[cell], captions[cell], strict=True):
            if caption != expected:
                differences.append((cell, row, expected, caption))
    print(f"{name}: {total - len(differences)} of {total} captions equal the baseline's ({', '.join(deterministic)})")
    for cell, row, expected, caption in differences:
        print(f"  {cell}, image {row.image_id}")
        print(f"    baseline: {setup.to_text(expected)}\n    {name}: {setup.to_text(caption)}")
    if differences:
        equal = sum(caption_from_float32(setup, cell, row) == expected for cell, row, expected, _ in differences)
        print(f"  from float32 states, {equal} of these {len(differences)} equal the baseline's")


def caption_from_float32(setup: Setup, name: str, row: Row) -> list[int]:
    """Our caption of one image whose states were not rounded to float16."""
    cell = setup.task.cells[name]
    _, pixels = val_dataset((row,), setup.towers.pixels.side)[0]
    states = setup.towers.image_states(pixels[None])
    uniform = np.zeros((1, 1, setup.task.max_length))
    return setup.new_generator().sample(states, [setup.prompts[cell.prompt]], [cell], uniform)[0]


def print_result(name: str, seconds: float, captions: Captions, counts: Counter) -> None:
    lengths = [len(caption) for cell_captions in captions.values() for caption in cell_captions]
    print(
        f"{name:<24}{seconds:8.1f} s{len(lengths) / seconds:9.1f} captions/s{counts['images']:7d} images encoded"
        f"{counts['tokens']:9d} tokens read{np.mean(lengths):7.1f} tokens per caption",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="BLIP-base, 384x384, random weights")
    parser.add_argument("--images", type=int, default=None, help="default: 192; 4 with --paper")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = arguments.images or (4 if arguments.paper else 192)
        build_setup = paper_setup if arguments.paper else embedded_setup
        experiment = load_experiment()
        # One seed: the baselines decode every cell once.
        task = experiment.captioning.model_copy(update={"seeds": experiment.captioning.seeds[:1]})
        setup = build_setup(experiment.model_copy(update={"captioning": task}), folder, images)
        side = setup.towers.pixels.side
        print(
            f"{images} images of {side}x{side}, {len(setup.task.cells)} cells, {len(setup.prompts)} prompts", flush=True
        )
        warm_up(setup, folder)
        seconds: dict[str, float] = {}
        captions: dict[str, Captions] = {}
        for variant, use_cache in (("baseline", False), ("baseline with cache", True)):
            with count_inputs(setup.towers.model) as counts, clocked(seconds, variant):
                captions[variant] = run_baseline(setup, use_cache)
            print_result(variant, seconds[variant], captions[variant], counts)
        parts: dict[str, float] = {}
        with count_inputs(setup.towers.model) as counts:
            ours = run_ours(setup, folder, parts, counts)
        total = sum(parts.values())
        print_result("ours", total, ours, counts)
        choices = sum(len(caption) + 1 for cell_captions in ours.values() for caption in cell_captions)
        print(
            f"ours by part: encode {parts['encode']:.2f} s, decode {parts['decode']:.2f} s, with "
            f"{counts['float64']} of about {choices} choices in double precision"
        )
        for variant in captions:
            times = f"{seconds[variant]:.1f} s against {total:.1f} s"
            print(f"ours is {seconds[variant] / total:.1f} times faster than the {variant} ({times})")
        compare("baseline with cache", captions["baseline"], captions["baseline with cache"], setup)
        compare("ours", captions["baseline"], ours, setup)


if __name__ == "__main__":
    main()
