"""All captioning cells decoded the usual way against ours, in one run on the same images with the same BLIP.

    python -m benchmarks.captioning                 the embedded BLIP
    python -m benchmarks.captioning --paper         BLIP-base at 384x384, random weights

The usual way calls transformers' `generate` cell by cell: every cell encodes the images again, and every token reads
the whole text and the image anew. A second line keeps keys and values (`use_cache`), still cell by cell, so that one
sees what each part saves. Ours encodes an image once, into the table of half floats that the pipeline keeps, and
decodes all cells with prompts of one length in one batch. Hooks in the shared model count the images that the tower
saw and the tokens that the decoder read, prompts included.

Cells that leave nothing to chance (greedy, or K = 1) are compared text by text, and where they differ ours is written
once more from states that were not rounded to half floats. The other cells draw other texts here than in `generate`,
so that their lengths may differ a bit. With random weights (`--paper`) hardly any text ends before the full length.
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
from stages.captioning.caption import decode
from stages.captioning.captioner import Captioner
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.text_decoders import BlipDecoder
from stages.data.manifest import Row
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.image_text.decoder_states import encode_states
from stages.image_text.pixels import view_dataset
from stages.image_text.towers import Towers
from stages.models import blip, vit
from stages.models.compute import get_device
from stages.params.captioning import Captioning, Cell
from stages.params.experiment import Experiment, load_experiment

GENERATED = 16  # images in a batch of the usual way
PAPER_PROMPT = 3  # tokens: the report's prompts are three common words each

Texts = dict[str, list[list[int]]]  # token ids without the prompt by cell, in the order of the images


@dataclass(frozen=True)
class Subject:
    """What all ways share. `towers.model` is the captioner: its image tower is the one that retrieval has."""

    towers: Towers
    rows: tuple[Row, ...]
    ids: dict[str, list[int]]
    experiment: Experiment

    @property
    def task(self) -> Captioning:
        return self.experiment.captioning

    def decoder(self) -> CaptionGenerator:
        """The pipeline's own, as yet without its copy in double precision."""
        lengths = Lengths(self.task.min_length, self.task.max_length)
        return CaptionGenerator(BlipDecoder(self.towers.model.text_decoder), lengths)

    def shown(self, text: list[int]) -> str:
        """A text to read: words where there is a tokenizer."""
        return self.towers.tokenizer.decode(text) if self.towers.tokenizer else " ".join(map(str, text))


def embedded(experiment: Experiment, folder: Path, images: int) -> Subject:
    source = experiment.embedded.blip
    model = blip.load(BlipForConditionalGeneration, source).to(get_device())
    towers = Towers(model, blip.load_tokenizer(source), blip.load_preprocessing(source), COMPUTE)
    rows = make_scenes(folder, 0, images, towers.pixels.side)["val"]
    ids = Captioner(source, BlipDecoder(model.text_decoder), towers.tokenizer).prompts(experiment.captioning)
    return Subject(towers, rows, ids, experiment)


def paper(experiment: Experiment, folder: Path, images: int) -> Subject:
    """BLIP-base's shape; its tokenizer is not needed, as any ids of the prompts' length cost the same."""
    torch.manual_seed(0)
    config = BlipConfig(vision_config={"initializer_range": 0.02})  # the default of 1e-10 is for checkpoints
    model = BlipForConditionalGeneration(config).eval().requires_grad_(False)
    side = config.vision_config.image_size
    towers = Towers(model.to(get_device()), None, blip.Preprocessing(side, vit.MEAN, vit.STD), COMPUTE)
    told = sorted({cell.prompt for cell in experiment.captioning.cells.values()})
    ids = {prompt: [2000 + 10 * at + step for step in range(PAPER_PROMPT)] for at, prompt in enumerate(told)}
    return Subject(towers, make_scenes(folder, 0, images, side)["val"], ids, experiment)


def cut(row: list[int], prompted: int, end: int) -> list[int]:
    """A text without its prompt, its end and what pads it."""
    text = row[prompted:]
    return text[: text.index(end)] if end in text else text


def asked_of(cell: Cell) -> dict[str, object]:
    """A cell in the words of `generate`, whose own K is 50 where none is given."""
    if cell.type == "greedy":
        return {"do_sample": False}
    if cell.type == "beam":
        return {"do_sample": False, "num_beams": cell.beams}
    return {"do_sample": True, "temperature": cell.temperature, "top_k": cell.k or 0, "top_p": cell.p or 1.0}


@torch.inference_mode()
def usual_way(subject: Subject, use_cache: bool) -> Texts:
    """Every cell by itself, from pixels. One pool of loading workers, kept over the cells."""
    towers, task, found = subject.towers, subject.task, {}
    config = towers.model.config.text_config
    views = view_dataset(subject.rows, towers.pixels.side)
    batches = DataLoader(views, GENERATED, num_workers=COMPUTE.workers, persistent_workers=True)
    for name, cell in task.cells.items():
        torch.manual_seed(0)
        told, found[name] = [config.bos_token_id, *subject.ids[cell.prompt], config.sep_token_id], []
        for _, pixels in batches:
            written = towers.model.generate(
                pixel_values=vit.normalize(pixels.to(towers.device), towers.pixels.mean, towers.pixels.std),
                # a new tensor every time: `generate` writes to it, and drops its last column itself
                input_ids=torch.tensor([told] * len(pixels), device=towers.device),
                min_length=task.min_length,
                max_length=task.max_length,
                use_cache=use_cache,
                **asked_of(cell),
            )
            found[name] += [cut(row, len(told) - 1, config.sep_token_id) for row in written.tolist()]
    return found


def encode(subject: Subject, folder: Path) -> None:
    """Hidden states of every image into a table in `folder`."""
    config = subject.towers.model.config.vision_config
    made_with = FeatureMetadata("benchmark", "", "", config.hidden_size, config.num_attention_heads, "", "")
    shards = Shards(folder / "val", len(subject.rows), vars(made_with), waiting=folder / "waiting")
    encode_states(subject.towers, subject.rows, shards, made_with)
    shards.commit()


def our_way(subject: Subject, folder: Path, seconds: dict[str, float], counts: Counter) -> Texts:
    """The pipeline's own functions, from pixels to token ids; seconds by part, and choices made again."""
    with clocked(seconds, "encode"):
        encode(subject, folder)
    with clocked(seconds, "decode"):
        decoder = subject.decoder()
        decoder.decoder.exact.register_forward_pre_hook(lambda *_: counts.update(exact=1))
        found = decode(decoder, FeatureTable(folder / "val"), subject.task.cells, subject.ids, subject.experiment)
    return {name: [texts[row.image_id] for row in subject.rows] for name, texts in found.items()}


@contextmanager
def counted(model: BlipForConditionalGeneration) -> Iterator[Counter]:
    """Counts images in the tower and tokens in the decoder, whoever calls them."""
    counts: Counter = Counter()

    def images(_module: nn.Module, _asked: tuple, states: Tensor) -> None:
        counts["images"] += len(states)

    def tokens(_module: nn.Module, _asked: tuple, states: Tensor) -> None:
        counts["tokens"] += states.shape[0] * states.shape[1]

    hooks = [
        model.vision_model.embeddings.register_forward_hook(images),
        model.text_decoder.bert.embeddings.register_forward_hook(tokens),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def warm_up(subject: Subject, folder: Path) -> None:
    """One short caption either way: what is imported at the first call is nobody's time."""
    cells = dict([next(iter(subject.task.cells.items()))])
    task = subject.task.model_copy(update={"min_length": 1, "max_length": 6, "cells": cells})
    experiment = subject.experiment.model_copy(update={"captioning": task})
    some = replace(subject, rows=subject.rows[:1], experiment=experiment)
    usual_way(some, use_cache=True)
    our_way(some, folder, {}, Counter())


def compare(name: str, usual: Texts, other: Texts, subject: Subject) -> None:
    """Say how many texts that hang on no chance are the same, and show those that are not."""
    certain = [cell for cell, asked in subject.task.cells.items() if asked.type == "greedy" or asked.k == 1]
    unlike = [
        (cell, row, theirs, ours)
        for cell in certain
        for row, theirs, ours in zip(subject.rows, usual[cell], other[cell], strict=True)
        if theirs != ours
    ]
    count = len(certain) * len(subject.rows)
    print(f"{name}: {count - len(unlike)} of {count} texts are the usual way's ({', '.join(certain)})")
    for cell, row, theirs, ours in unlike:
        print(f"  {cell}, image {row.image_id}\n    usual: {subject.shown(theirs)}\n    other: {subject.shown(ours)}")
    if unlike:
        mended = sum(from_singles(subject, cell, row) == theirs for cell, row, theirs, _ in unlike)
        print(f"  from states not rounded to half floats, ours writes the usual way's in {mended} of {len(unlike)}")


def from_singles(subject: Subject, cell: str, row: Row) -> list[int]:
    """What ours writes of one image whose states were not rounded to half floats."""
    task, towers = subject.task, subject.towers
    states = towers.image_states(view_dataset((row,), towers.pixels.side)[0][1][None])
    chance = np.zeros((1, 1, task.max_length))
    return subject.decoder().sample(states, [subject.ids[task.cells[cell].prompt]], [task.cells[cell]], chance)[0]


def line(name: str, seconds: float, found: Texts, counts: Counter) -> str:
    texts = [text for cell in found.values() for text in cell]
    length = np.mean([len(text) for text in texts])
    return (
        f"{name:<24}{seconds:8.1f} s{len(texts) / seconds:9.1f} captions/s{counts['images']:7d} images encoded"
        f"{counts['tokens']:9d} tokens read{length:7.1f} written a caption"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="BLIP-base, 384x384, random weights")
    parser.add_argument("--images", type=int, default=None, help="192; 4 with --paper")
    asked = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = asked.images or (4 if asked.paper else 192)
        subject = (paper if asked.paper else embedded)(load_experiment(), folder, count)
        side, cells = subject.towers.pixels.side, subject.task.cells
        print(f"{count} images of {side}x{side}, {len(cells)} cells, {len(subject.ids)} prompts", flush=True)
        warm_up(subject, folder)
        took: dict[str, float] = {}
        found: dict[str, Texts] = {}
        for way, use_cache in (("usual way", False), ("usual way, keys kept", True)):
            with counted(subject.towers.model) as counts, clocked(took, way):
                found[way] = usual_way(subject, use_cache)
            print(line(way, took[way], found[way], counts), flush=True)
        parts: dict[str, float] = {}
        with counted(subject.towers.model) as counts:
            ours = our_way(subject, folder, parts, counts)
        total = sum(parts.values())
        print(line("ours", total, ours, counts))
        choices = sum(len(text) + 1 for cell in ours.values() for text in cell)
        print(
            f"ours by part: encode {parts['encode']:.2f} s, decode {parts['decode']:.2f} s, in which "
            f"{counts['exact']} of about {choices} choices were made again in double precision"
        )
        for way, seconds in took.items():
            print(f"ours is {seconds / total:.1f} times faster than the {way} ({seconds:.1f} s against {total:.1f} s)")
        compare("usual way, keys kept", found["usual way"], found["usual way, keys kept"], subject)
        compare("ours", found["usual way"], ours, subject)


if __name__ == "__main__":
    main()
