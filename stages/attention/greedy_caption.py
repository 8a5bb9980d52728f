"""Caption an image greedily, and extract its words with their attention."""

import numpy as np
from PIL import Image

from stages.attention.words import Word, extract_words
from stages.captioning.captioner import caption_text, load_captioner
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.image_text.image_encoder import load_encoder
from stages.params.captioning import CaptionModel, Cell
from stages.params.experiment import Experiment


class GreedyCaptioner:
    """A captioning model of the profile that starts with the prompt of `attention.captions.cell`.

    It decodes greedily, whatever the cell's type, so that a caption depends only on the image.
    """

    def __init__(self, experiment: Experiment, kind: CaptionModel):
        captioning = experiment.captioning
        self.params = experiment.attention.captions
        self.max_length = captioning.max_length
        self.captioner = load_captioner(experiment, kind)
        self.encode = load_encoder(experiment, kind)
        self.cell = Cell(type="greedy", prompt=captioning.cells[self.params.cell].prompt)
        prompts = self.captioner.prompts(captioning.model_copy(update={"cells": {self.params.cell: self.cell}}))
        self.prompt = prompts[self.cell.prompt]
        self.generator = CaptionGenerator(self.captioner.decoder, Lengths(captioning.min_length, captioning.max_length))

    def caption(self, image: Image.Image) -> tuple[str, list[Word]]:
        """The caption of an image without its prompt, and its words with their attention."""
        states = self.encode(image)
        unused_random_numbers = np.zeros((1, 1, self.max_length))  # greedy decoding draws none
        (tokens,) = self.generator.sample(states, [self.prompt], [self.cell], unused_random_numbers)
        (words,) = extract_words(self.captioner, self.params, states, self.prompt, [tokens], self.max_length)
        return caption_text(self.captioner.tokenizer, self.prompt, tokens), words
