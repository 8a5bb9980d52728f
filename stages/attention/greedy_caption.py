"""Caption an image greedily, and extract its words with their attention."""

from PIL import Image

from stages.attention.words import Word, extract_words
from stages.captioning.image_captioner import ImageCaptioner
from stages.params.captioning import CaptionModel, Cell
from stages.params.experiment import Experiment


class GreedyCaptioner:
    """A captioning model of the profile that starts with the prompt of `attention.captions.cell`.

    It decodes greedily, whatever the cell's type, so that a caption depends only on the image.
    """

    def __init__(self, experiment: Experiment, kind: CaptionModel):
        self.params = experiment.attention.captions
        self.max_length = experiment.captioning.max_length
        name = self.params.cell
        self.cell = Cell(type="greedy", prompt=experiment.captioning.cells[name].prompt)
        self.image_captioner = ImageCaptioner(experiment, kind, name, self.cell)
        self.captioner = self.image_captioner.captioner

    def caption(self, image: Image.Image) -> tuple[str, list[Word]]:
        """The caption of an image without its prompt, and its words with their attention."""
        states = self.image_captioner.encode(image)
        tokens = self.image_captioner.generate(states, image_id="")  # greedy decoding draws no random numbers
        prompt = self.image_captioner.prompt
        (words,) = extract_words(self.captioner, self.params, states, prompt, [tokens], self.max_length)
        return self.image_captioner.text(tokens), words
