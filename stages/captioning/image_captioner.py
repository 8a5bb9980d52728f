"""Caption one image at a time by one cell."""

from PIL import Image
from torch import Tensor

from stages.captioning.caption_job import decode_batch
from stages.captioning.captioner import caption_text, load_captioner
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.image_text.image_encoder import load_encoder
from stages.params.captioning import CaptionModel, Cell
from stages.params.experiment import Experiment


class ImageCaptioner:
    """A captioning model of the profile that decodes by the cell `name`, with the first of `captioning.seeds`.

    A caption ends at its end token, whatever `captioning.stop` is: one image is no batch.
    """

    def __init__(self, experiment: Experiment, kind: CaptionModel, name: str, cell: Cell):
        task = experiment.captioning
        task = task.model_copy(update={"cells": {name: cell}, "seeds": task.seeds[:1]})
        self.experiment = experiment.model_copy(update={"captioning": task})
        self.captioner = load_captioner(experiment, kind)
        self.encode = load_encoder(experiment, kind)
        self.prompts = self.captioner.prompts(task)
        self.prompt = self.prompts[cell.prompt]
        self.generator = CaptionGenerator(self.captioner.decoder, Lengths(task.min_length, task.max_length))

    def generate(self, states: Tensor, image_id: str) -> list[int]:
        """The caption's token IDs, without the prompt, from the states `(1, rows, columns, dim)` of an image.

        Random numbers depend only on (seed, cell, image ID), as those of the stage `caption` do.
        """
        ((tokens,),) = decode_batch(self.generator, [image_id], states, self.prompts, self.experiment)
        return tokens

    def text(self, tokens: list[int]) -> str:
        """The caption of token IDs, without the prompt."""
        return caption_text(self.captioner.tokenizer, self.prompt, tokens)

    def caption(self, image: Image.Image, image_id: str) -> str:
        """The caption of an image, without the prompt.

        The states are rounded to float16, as the stage `caption` reads them: there, a validation image gets the same
        caption.
        """
        return self.text(self.generate(self.encode(image).half(), image_id))
