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

LONGEST = 35  # tokens of a caption, as in the protocol


@dataclass(frozen=True)
class Towers:
    """How BLIP sees images and reads texts. Without `compute`, in single precision.

    `lacks` says why it reads none, and so has nothing to compare images with; None where it does.
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
        """Processes that cut views for it."""
        return self.compute.workers if self.compute else 0

    def _precision(self) -> AbstractContextManager:
        return mixed_precision(self.compute) if self.compute else nullcontext()

    @torch.inference_mode()
    def image_states(self, pixels: Tensor) -> Tensor:
        """`(B, 1 + patches, dim)`, the class token first, of uint8 `(B, 3, side, side)`.

        Their first column is what retrieval compares: `pooler_output` would go through the last norm twice.
        """
        pixels = vit.normalize(pixels.to(self.device, non_blocking=True), self.pixels.mean, self.pixels.std)
        with self._precision():
            return self.model.vision_model(pixels).last_hidden_state.float()

    @torch.inference_mode()
    def text_states(self, texts: list[str]) -> Tensor:
        """Class-token states `(B, dim)`."""
        asked = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
        read = self.tokenizer(texts, **asked).to(self.device)
        with self._precision():
            return (
                self.model.text_encoder(read.input_ids, attention_mask=read.attention_mask)
                .last_hidden_state[:, 0]
                .float()
            )


def load_towers(checkpoint: Checkpoint, compute: Compute) -> Towers:
    """Both towers of a BLIP; the image tower alone of one that only captions. Raises as `blip.load` does."""
    folder, lacks = checkpoint.path, None
    try:
        model = blip.load(BlipForImageTextRetrieval, folder)
    except blip.PartsMissingError as fault:
        model, lacks = blip.load(BlipForConditionalGeneration, folder), f"{checkpoint.source} {fault}"
    prepare_model(model.vision_model, compute)
    return Towers(model.to(get_device()), blip.load_tokenizer(folder), blip.load_preprocessing(folder), compute, lacks)
