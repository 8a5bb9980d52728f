"""BLIP's image and text towers, frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedTokenizerBase

from stages.core.stage import InputError
from stages.image_text.pixels import BATCH, val_view
from stages.models import blip, vit
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import get_device, mixed_precision, prepare_model
from stages.params.compute import FLOAT32, Compute
from stages.params.experiment import Experiment

MAX_TOKENS = 35  # of a caption, as in the original


@dataclass(frozen=True)
class Towers:
    """Encodes images and texts in the precision of `compute`.

    `missing_tower` says why retrieval is not possible: the model has no text tower. None if it has one.
    """

    model: BlipForImageTextRetrieval | BlipForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    pixels: blip.Preprocessing
    compute: Compute
    missing_tower: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prepare(self) -> None:
        """Move the model to this process's device, and compile the image tower if `compute.compile` is set."""
        prepare_model(self.model.vision_model, self.compute)
        self.model.to(get_device())  # type: ignore[arg-type]  # transformers wraps `to` in an untyped decorator

    @torch.inference_mode()
    def image_states(self, pixels: Tensor) -> Tensor:
        """Return the states `(B, 1 + patches, dim)`, class token first, of uint8 pixels `(B, 3, side, side)`.

        Retrieval compares the class token. Not `pooler_output`, which applies the last norm twice.
        """
        pixels = vit.normalize(pixels.to(self.device, non_blocking=True), self.pixels.mean, self.pixels.std)
        with mixed_precision(self.compute):
            return self.model.vision_model(pixels).last_hidden_state.float()

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the states `(N, 1 + patches, dim)` of RGB images of any size, resized as for validation."""
        pixels = torch.stack([val_view(image, self.pixels.side) for image in images])
        return torch.cat([self.image_states(batch) for batch in pixels.split(BATCH)])

    @torch.inference_mode()
    def text_states(self, texts: list[str]) -> Tensor:
        """Return the class-token states `(B, dim)` of texts. Raises `InputError` if the model has no text tower."""
        if not isinstance(self.model, BlipForImageTextRetrieval):
            raise InputError(f"no text tower: {self.missing_tower}")
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        batch = batch.to(self.device)
        with mixed_precision(self.compute):
            output = self.model.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)
        return output.last_hidden_state[:, 0].float()


def load_towers(folder: str | Path, compute: Compute = FLOAT32, source: str | None = None) -> Towers:
    """Load both towers of a BLIP, or the image tower of one that only captions. Raises as `blip.load` does.

    `source` is the name of the model in messages, by default `folder`.
    """
    path = str(folder)
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration
    missing_tower = None
    try:
        model = blip.load(BlipForImageTextRetrieval, path)
    except blip.PartsMissingError as error:
        model = blip.load(BlipForConditionalGeneration, path)
        missing_tower = f"{source or path} {error}"
    towers = Towers(model, blip.load_tokenizer(path), blip.load_preprocessing(path), compute, missing_tower)
    towers.prepare()
    return towers


def load_blip(experiment: Experiment) -> Towers:
    """Load the profile's BLIP; raises `InputError` naming its param."""
    checkpoint = read_checkpoint("blip", experiment.active.blip)
    with loading_errors(f"{experiment.profile}.blip", checkpoint.source):
        return load_towers(checkpoint.path, experiment.compute, checkpoint.source)
