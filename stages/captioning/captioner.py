"""The model that captions in this experiment: what it decodes with, and its words."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from stages.captioning.text_decoders import BlipDecoder, CatrDecoder, TextDecoder
from stages.core.stage import InputError
from stages.image_text.vocabulary import unknown_words
from stages.models import blip, catr
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import get_device
from stages.params.captioning import Captioning
from stages.params.experiment import Experiment


@dataclass(frozen=True)
class Captioner:
    """`source` is as params name it."""

    source: str
    decoder: TextDecoder
    tokenizer: PreTrainedTokenizerBase

    def prompts(self, task: Captioning) -> dict[str, list[int]]:
        """Token ids of every cell's prompt.

        Raises `InputError` for a prompt with unknown words, or with no room behind it, and for a cell or a length that
        the model is not made for.
        """
        if task.max_length > self.decoder.positions:
            most = f"at most {self.decoder.positions}, the positions of {self.source}"
            raise InputError(f"captioning.max_length = {task.max_length}: {most}")
        ids = {}
        for name, cell in task.cells.items():
            if cell.type == "beam" and not hasattr(self.decoder, "beam_search"):
                raise InputError(
                    f"captioning.cells.{name}.type = 'beam': captioning.model {task.model} has no beam search"
                )
            asked = f"captioning.cells.{name}.prompt = '{cell.prompt}'"
            ids[cell.prompt] = self.tokenizer(cell.prompt, add_special_tokens=False).input_ids
            unknown = unknown_words(self.tokenizer, [cell.prompt])[1]
            if unknown:
                named = ", ".join(word for word in cell.prompt.split() if word in unknown)
                raise InputError(f"{asked}: {named} not in the vocabulary of {self.source}")
            if len(ids[cell.prompt]) + 1 >= task.max_length:
                raise InputError(f"{asked}: no room behind it; captioning.max_length is {task.max_length} tokens")
        return ids


def load_captioner(experiment: Experiment) -> Captioner:
    """The model of `captioning.model`, on its device; decodes in single precision, whatever images are encoded in."""
    source, kind = experiment.captioner, experiment.captioning.model
    folder = read_checkpoint(kind, source).file
    with loading_errors(f"{experiment.profile}.{kind}", source):
        if kind == "blip":
            decoder = BlipDecoder(blip.load_decoder(str(folder)).to(get_device()))
            return Captioner(source, decoder, blip.load_tokenizer(str(folder)))
        decoder = CatrDecoder(catr.load(folder / catr.WEIGHTS).to(get_device()))
        return Captioner(source, decoder, catr.load_tokenizer(folder))
