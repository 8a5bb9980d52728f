"""The captioning model of an experiment: its text decoder and tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.captioning.text_decoders import BlipDecoder, CatrDecoder, TextDecoder
from stages.core.stage import InputError
from stages.image_text.vocabulary import unknown_words
from stages.models import blip, catr
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import get_device
from stages.params.captioning import Captioning, CaptionModel
from stages.params.experiment import Experiment


def caption_text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], caption: list[int]) -> str:
    """The text of a caption without its prompt, both as token IDs.

    As in the original, prompt and caption are decoded together, without special tokens and with transformers' clean-up
    (`man's`, not `man ' s`); then the prompt's characters are cut off. So a word piece that continues the prompt's last
    word, such as `##ten` after `of`, leaves `ten`, not `##ten`.
    """

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True))

    return decode([*prompt, *caption])[len(decode(prompt)) :].strip()


@dataclass(frozen=True)
class Captioner:
    """`source` is the model's name in params."""

    source: str
    decoder: TextDecoder
    tokenizer: PreTrainedTokenizerBase

    def prompts(self, task: Captioning) -> dict[str, list[int]]:
        """Token IDs by prompt, for the prompts of all cells.

        Raises `InputError` if the model cannot decode a cell: a prompt with unknown words or too long for
        `max_length`, a `max_length` beyond its positions, or a beam search it does not have.
        """
        if task.max_length > self.decoder.positions:
            limit = f"at most {self.decoder.positions}, the positions of {self.source}"
            raise InputError(f"captioning.max_length = {task.max_length}: {limit}")
        token_ids = {}
        for name, cell in task.cells.items():
            key = f"captioning.cells.{name}"
            if cell.type == "beam" and not isinstance(self.decoder, BlipDecoder):
                raise InputError(f"{key}.type = 'beam': {self.source} has no beam search")
            _, unknown = unknown_words(self.tokenizer, [cell.prompt])
            if unknown:
                words = ", ".join(word for word in cell.prompt.split() if word in unknown)
                raise InputError(f"{key}.prompt = '{cell.prompt}': {words} not in the vocabulary of {self.source}")
            token_ids[cell.prompt] = self.tokenizer(cell.prompt, add_special_tokens=False).input_ids
            if len(token_ids[cell.prompt]) + 1 >= task.max_length:
                limit = f"captioning.max_length is {task.max_length} tokens"
                raise InputError(f"{key}.prompt = '{cell.prompt}': no room for a caption after it; {limit}")
        return token_ids


def _load_blip(folder: Path) -> tuple[TextDecoder, PreTrainedTokenizerBase]:
    model = blip.load_decoder(str(folder))
    model.to(get_device())  # type: ignore[arg-type]  # transformers' decorator hides the method's signature
    return BlipDecoder(model), blip.load_tokenizer(str(folder))


def _load_catr(folder: Path) -> tuple[TextDecoder, PreTrainedTokenizerBase]:
    model = catr.load(folder / catr.WEIGHTS).to(get_device())
    return CatrDecoder(model), catr.load_tokenizer(folder)


LOADERS: dict[CaptionModel, Callable[[Path], tuple[TextDecoder, PreTrainedTokenizerBase]]] = {
    "blip": _load_blip,
    "catr": _load_catr,
}


def load_captioner(experiment: Experiment, kind: CaptionModel) -> Captioner:
    """A captioning model of the profile, on its device, in float32 whatever the precision of the image encoder."""
    source = experiment.captioner_source(kind)
    key = f"{experiment.profile}.{kind}"
    if source is None:
        raise InputError(f"captioning.model = '{kind}': {key} is null; name a checkpoint, or choose another model")
    folder = read_checkpoint(kind, source).file
    with loading_errors(key, source):
        decoder, tokenizer = LOADERS[kind](folder)
    return Captioner(source, decoder, tokenizer)
