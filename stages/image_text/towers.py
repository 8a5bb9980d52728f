"""BLIP's image and text towers, frozen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedTokenizerBase

from stages.core.stage import InputError
from stages.models import blip, vit
from stages.models.checkpoints.record import Checkpoint, loading_errors, read_checkpoint
from stages.models.compute import get_device, mixed_precision, prepare_model
from stages.params.compute import Compute
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


def load_towers(checkpoint: Checkpoint, compute: Compute) -> Towers:
    """Load both towers of a BLIP, or the image tower of one that only captions. Raises as `blip.load` does."""
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration
    missing_tower = None
    try:
        model = blip.load(BlipForImageTextRetrieval, checkpoint.path)
    except blip.PartsMissingError as error:
        model = blip.load(BlipForConditionalGeneration, checkpoint.path)
        missing_tower = f"{checkpoint.source} {error}"
    tokenizer = blip.load_tokenizer(checkpoint.path)
    towers = Towers(model, tokenizer, blip.load_preprocessing(checkpoint.path), compute, missing_tower)
    towers.prepare()
    return towers


def load_blip(experiment: Experiment) -> Towers:
    """Load the profile's BLIP; raises `InputError` naming its param."""
    checkpoint = read_checkpoint("blip", experiment.active.blip)
    with loading_errors(f"{experiment.profile}.blip", checkpoint.source):
        return load_towers(checkpoint, experiment.compute)
