"""Any one image as the model that captions sees it."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from stages.image_text.pixels import val_view
from stages.image_text.towers import load_towers
from stages.models import catr
from stages.models.checkpoints.record import read_checkpoint
from stages.models.compute import get_device
from stages.params.experiment import Experiment


def load_encoder(experiment: Experiment) -> Callable[[Image.Image], Tensor]:
    """Gives an image's states, `(1, rows, columns, dim)`, as captions are decoded from them; BLIP's are one line."""
    checkpoint = read_checkpoint(experiment.captioning.model, experiment.captioner)
    if experiment.captioning.model == "blip":
        towers = load_towers(checkpoint, experiment.compute)
        return lambda image: towers.image_states(val_view(image, towers.pixels.side)[None])[:, None].float()
    model = catr.load(checkpoint.file / catr.WEIGHTS).to(get_device())

    @torch.inference_mode()
    def seen(image: Image.Image) -> Tensor:
        return model.memory(catr.preprocess(image)[None].to(get_device()))

    return seen
