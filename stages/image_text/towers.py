"""BLIP's image and text towers, frozen."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedTokenizerBase

from stages.models import blip, vit
from stages.models.checkpoints.record import Checkpoint
from stages.models.compute import get_device, mixed_precision, prepare_model
from stages.params.compute import Compute

MAX_TOKENS = 35  # of a caption, as in the protocol


@dataclass(frozen=True)
class Towers:
    """Encodes images and texts. Without `compute`, in single precision.

    `lacks` says why a model has no text tower, and so nothing to compare images with; None if it has one.
    """

    model: BlipForImageTextRetrieval | BlipForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    pixels: blip.Preprocessing
    compute: Compute | None = None
    lacks: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def workers(self) -> int:
        """Worker processes that load views."""
        return self.compute.workers if self.compute else 0

    def _precision(self) -> AbstractContextManager:
        return mixed_precision(self.compute) if self.compute else nullcontext()

    @torch.inference_mode()
    def image_states(self, pixels: Tensor) -> Tensor:
        """Return the states `(B, 1 + patches, dim)`, class token first, of uint8 pixels `(B, 3, side, side)`.

        Retrieval compares the class token. Not `pooler_output`, which applies the last norm twice.
        """
        pixels = vit.normalize(pixels.to(self.device, non_blocking=True), self.pixels.mean, self.pixels.std)
        with self._precision():
            return self.model.vision_model(pixels).last_hidden_state.float()

    @torch.inference_mode()
    def text_states(self, texts: list[str]) -> Tensor:
        """Return the class-token states `(B, dim)` of texts."""
        assert isinstance(self.model, BlipForImageTextRetrieval), self.lacks
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        batch = batch.to(self.device)
        with self._precision():
            output = self.model.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)
        return output.last_hidden_state[:, 0].float()


def load_towers(checkpoint: Checkpoint, compute: Compute) -> Towers:
    """Load both towers of a BLIP, or the image tower of one that only captions. Raises as `blip.load` does."""
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration
    lacks = None
    try:
        model = blip.load(BlipForImageTextRetrieval, checkpoint.path)
    except blip.PartsMissingError as error:
        model = blip.load(BlipForConditionalGeneration, checkpoint.path)
        lacks = f"{checkpoint.source} {error}"
    prepare_model(model.vision_model, compute)
    model.to(get_device())  # type: ignore[arg-type]  # transformers wraps `to` in an untyped decorator
    tokenizer = blip.load_tokenizer(checkpoint.path)
    return Towers(model, tokenizer, blip.load_preprocessing(checkpoint.path), compute, lacks)
