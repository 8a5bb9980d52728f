"""Stage `encode_image_text`: every image view through BLIP's image tower once, every caption through its text tower."""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerBase

from stages.absence import declare_absent
from stages.backbones import blip, vit
from stages.data import manifest as manifests
from stages.data.images import read_image
from stages.data.manifest import Manifest, Row
from stages.features import Features, Provenance, feature_writer
from stages.image_text import COMPARED, DECODING
from stages.image_text.pixels import train_view, val_view
from stages.params.experiment import load_experiment
from stages.stage import InputError, stage
from stages.vectors import Vectors, write_vectors
from stages.views import View
from stages.writing import replacing

BATCH = 32  # image views
TEXTS = 128  # captions
LONGEST = 35  # tokens of a caption, as in the protocol
WORKERS = min(2, os.cpu_count() or 1)
NAMED = 12  # unknown words that are named


@dataclass(frozen=True)
class Towers:
    """BLIP's image and text towers, and how they want pixels and words."""

    model: BlipForImageTextRetrieval
    tokenizer: PreTrainedTokenizerBase
    pixels: blip.Pixels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def image_states(self, pixels: Tensor) -> Tensor:
        """`(B, 1 + patches, dim)`, the class token first, of uint8 `(B, 3, side, side)`.

        Their first column is what retrieval compares: `pooler_output` would go through the last norm twice.
        """
        pixels = vit.normalise(pixels.to(self.device, non_blocking=True), self.pixels.mean, self.pixels.std)
        return self.model.vision_model(pixels).last_hidden_state

    @torch.inference_mode()
    def text_states(self, texts: list[str]) -> Tensor:
        """Class-token states `(B, dim)`."""
        asked = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
        read = self.tokenizer(texts, **asked).to(self.device)
        return self.model.text_encoder(read.input_ids, attention_mask=read.attention_mask).last_hidden_state[:, 0]


def load_towers(source: str) -> Towers:
    """Both towers of a BLIP, on the GPU where there is one. Raises as `blip.load` does."""
    model = blip.load(BlipForImageTextRetrieval, source)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Towers(model, blip.load_tokenizer(source), blip.load_pixels(source))


class Views(Dataset):
    """`(pixels (3, side, side) uint8)` of every row: augmented with its own seed, or as for validation without one."""

    def __init__(self, rows: tuple[Row, ...], side: int, seeds: list[int] | None = None):
        self.rows, self.side, self.seeds = rows, side, seeds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        image = read_image(Path(self.rows[index].image))
        if self.seeds is None:
            return val_view(image, self.side)
        return train_view(image, self.side, self.seeds[index])


def encode_train(towers: Towers, rows: tuple[Row, ...], views: int, seed_of, made_with: dict[str, str]) -> Vectors:
    """Class-token states of `views` augmented views of every row, view by view; `seed_of(name)` seeds each."""
    taken = rows * views
    indices = [view for view in range(views) for _ in rows]
    seeds = [seed_of(f"retrieval/view/{view}/{row.image_id}") for row, view in zip(taken, indices, strict=True)]
    batches = DataLoader(Views(taken, towers.pixels.side, seeds), BATCH, num_workers=WORKERS)
    states = [
        towers.image_states(batch)[:, 0].half().cpu() for batch in _bar(batches, "encode train views", len(taken))
    ]
    return Vectors([row.image_id for row in taken], indices, torch.cat(states), made_with)


def encode_val(towers: Towers, rows: tuple[Row, ...], provenance: Provenance) -> Vectors:
    """All hidden states of every row into the table for decoding; returns the class tokens' alone."""
    side, first = towers.pixels.side, []
    view = View(side, side, 0, 0, side, side, False)
    batches = DataLoader(Views(rows, side), BATCH, num_workers=WORKERS)
    with feature_writer(DECODING / "val.parquet", provenance) as writer:
        for number, batch in enumerate(_bar(batches, "encode val images", len(rows))):
            states = towers.image_states(batch).half().cpu()
            first.append(states[:, 0].clone())  # a view would keep its batch
            for row, one in zip(rows[number * BATCH :], states, strict=False):
                writer.add(Features(row.image_id, 0, view, one[None]))
    return Vectors([row.image_id for row in rows], [0] * len(rows), torch.cat(first), vars_as_text(provenance))


def encode_captions(towers: Towers, rows: tuple[Row, ...], made_with: dict[str, str]) -> Vectors:
    """Class-token states of every caption of every row; captions of like length share a batch."""
    told = [(row.image_id, index, text) for row in rows for index, text in enumerate(row.captions)]
    order = sorted(range(len(told)), key=lambda index: len(told[index][2].split()))
    states: list[Tensor | None] = [None] * len(told)
    with tqdm(total=len(told), desc="encode captions", unit="caption", mininterval=1) as bar:
        for start in range(0, len(order), TEXTS):
            some = order[start : start + TEXTS]
            for index, state in zip(some, towers.text_states([told[one][2] for one in some]).half().cpu(), strict=True):
                states[index] = state
            bar.update(len(some))
    return Vectors([one[0] for one in told], [one[1] for one in told], torch.stack(states), made_with)


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[float, list[str]]:
    """The share of words that the vocabulary lacks, and those words, the most frequent first."""
    counted = Counter(word for text in texts for word in text.split())
    unknown = {
        word: count
        for word, count in counted.items()
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
    }
    return sum(unknown.values()) / counted.total(), sorted(unknown, key=lambda word: (-unknown[word], word))


def check_captioned(manifest: Manifest) -> None:
    """Raise `InputError` where some images have captions and others have none."""
    bare = [row.image_id for row in manifest.rows if not row.captions]
    if bare:
        count = f"{len(bare)} image{'s have' if len(bare) > 1 else ' has'} no caption"
        raise InputError(f"{manifest.source}/captions.json: {count}: {', '.join(bare[:NAMED])}")


def vars_as_text(provenance: Provenance) -> dict[str, str]:
    """A provenance as schema metadata."""
    return {key: str(value) for key, value in vars(provenance).items()}


def _bar(batches: DataLoader, name: str, count: int):
    """The batches, with a progress bar that counts views."""
    with tqdm(total=count, desc=name, unit="view", mininterval=1) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def main() -> None:
    torch.set_flush_denormal(True)
    experiment, manifest = load_experiment(), manifests.read()
    for folder in (DECODING, COMPARED):
        shutil.rmtree(folder, ignore_errors=True)  # of another source, perhaps
    if not any(row.captions for row in manifest.rows):
        reason = f"{manifest.source} has no captions (captions.json): no captioning, no retrieval"
        declare_absent(reason, DECODING, COMPARED)
        return
    check_captioned(manifest)
    source = experiment.active.blip
    try:
        towers = load_towers(source)
    except (OSError, ValueError, RuntimeError) as fault:
        raise InputError(f"{experiment.profile}.blip = '{source}': {str(fault).strip().splitlines()[0]}") from fault
    share, unknown = unknown_words(towers.tokenizer, [text for row in manifest.rows for text in row.captions])
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        print(f"{share:.1%} of the captions' words are unknown to {source}: {', '.join(unknown[:NAMED])}{more}")
    config = towers.model.config.vision_config
    side = towers.pixels.side
    provenance = Provenance(
        backbone=source,
        weights=vit.weights_hash(towers.model),
        transform=f"resized to {side}x{side} (bicubic), mean {towers.pixels.mean}, std {towers.pixels.std}",
        dim=config.hidden_size,
        heads=config.num_attention_heads,
        patch=f"{config.patch_size}x{config.patch_size}",
        manifest=manifests.fingerprint(),
    )
    facts = vars_as_text(provenance) | {"unknown_share": f"{share:.4f}", "unknown_words": " ".join(unknown[:NAMED])}
    views = experiment.retrieval.views
    augmented = f"{views} views: resized crop of 0.5 to 1 of the area to {side}x{side}, flip, RandAugment(2, 5)"
    write_vectors(COMPARED / "val.parquet", encode_val(towers, manifest.split("val"), provenance))
    write_vectors(COMPARED / "captions.parquet", encode_captions(towers, manifest.rows, facts))
    train = encode_train(towers, manifest.split("train"), views, experiment.seed_of, facts | {"transform": augmented})
    write_vectors(COMPARED / "train.parquet", train)
    projections = {
        name: weight.cpu().contiguous()
        for name, weight in towers.model.state_dict().items()
        if name.startswith(("vision_proj.", "text_proj."))
    }
    with replacing(COMPARED / "projections.safetensors") as beside:
        save_file(projections, beside)


if __name__ == "__main__":
    with stage("encode_image_text"):
        main()
