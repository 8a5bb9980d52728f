"""Encode single images for the captioning model."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from stages.core.stage import InputError
from stages.image_text.towers import load_blip
from stages.models import catr
from stages.models.catr import Catr
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import get_device, mixed_precision
from stages.params.captioning import CaptionModel
from stages.params.experiment import Experiment


def load_catr(experiment: Experiment) -> Catr:
    """Load the profile's CATR; raises `InputError` naming its param."""
    source = experiment.active.catr
    if source is None:
        raise InputError(f"{experiment.profile}.catr is null: CATR needs a checkpoint")
    path = read_checkpoint("catr", source).file / catr.WEIGHTS
    with loading_errors(f"{experiment.profile}.catr", source):
        return catr.load(path)


def load_encoder(experiment: Experiment, kind: CaptionModel) -> Callable[[Image.Image], Tensor]:
    """Return a function from an image to its states `(1, rows, columns, dim)`, as a model decodes captions from them.

    BLIP's states have one row: the class token and all patches.
    """
    if kind == "blip":
        towers = load_blip(experiment)
        return lambda image: towers.encode_images([image])[:, None]

    model = load_catr(experiment).to(get_device())

    @torch.inference_mode()
    def encode(image: Image.Image) -> Tensor:
        with mixed_precision(experiment.compute):
            pixels = catr.preprocess(image, model.config.longer_side)
            return model.memory(pixels[None].to(get_device())).float()

    return encode
