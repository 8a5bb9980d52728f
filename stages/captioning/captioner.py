"""The captioning model of an experiment: its text decoder and tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.text_decoders import BlipDecoder, CatrDecoder, TextDecoder
from stages.core.stage import InputError
from stages.image_text.vocabulary import unknown_words
from stages.models import blip, catr
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.compute import get_device
from stages.params.captioning import Captioning, CaptionModel, Cell
from stages.params.experiment import Experiment

LENGTHS = Lengths(shortest=10, longest=30)  # those of params.yaml


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

    @classmethod
    def from_folder(cls, folder: str | Path, kind: CaptionModel = "blip", source: str | None = None) -> "Captioner":
        """Load a checkpoint, to this machine's device; `source` is by default `folder`."""
        return cls(source or str(folder), *LOADERS[kind](Path(folder)))

    def caption(self, states: Tensor, cell: Cell, *, lengths: Lengths = LENGTHS, seed: int = 1) -> list[str]:
        """Return one caption without its prompt per image.

        `states` are `(B, rows, columns, dim)` from the model's image encoder; BLIP's may lack `rows`. Raises
        `InputError` as `prompts` does.
        """
        prompt = self.prompt_tokens(cell, lengths.longest)
        generator = CaptionGenerator(self.decoder, lengths)
        if cell.beams:
            sequences = generator.beam_search(states, prompt, cell.beams)
        else:
            uniform = np.random.default_rng(seed).random((len(states), 1, lengths.longest))
            sequences = generator.sample(states, [prompt], [cell], uniform)
        return [caption_text(self.tokenizer, prompt, tokens) for tokens in sequences]

    def prompts(self, task: Captioning) -> dict[str, list[int]]:
        """Token IDs by prompt, for the prompts of all cells.

        Raises `InputError` if the model cannot decode a cell: a prompt with unknown words or too long for
        `max_length`, a `max_length` beyond its positions, or a beam search it does not have.
        """
        return {
            cell.prompt: self.prompt_tokens(cell, task.max_length, f"captioning.cells.{name}")
            for name, cell in task.cells.items()
        }

    def prompt_tokens(self, cell: Cell, max_length: int, key: str = "cell") -> list[int]:
        """Token IDs of a cell's prompt. `key` names the cell in the messages of `InputError`."""
        if max_length > self.decoder.positions:
            limit = f"at most {self.decoder.positions}, the positions of {self.source}"
            raise InputError(f"captioning.max_length = {max_length}: {limit}")
        if cell.type == "beam" and not isinstance(self.decoder, BlipDecoder):
            raise InputError(f"{key}.type = 'beam': {self.source} has no beam search")
        _, unknown = unknown_words(self.tokenizer, [cell.prompt])
        if unknown:
            words = ", ".join(word for word in cell.prompt.split() if word in unknown)
            raise InputError(f"{key}.prompt = '{cell.prompt}': {words} not in the vocabulary of {self.source}")
        token_ids = self.tokenizer(cell.prompt, add_special_tokens=False).input_ids
        if len(token_ids) + 1 >= max_length:
            limit = f"captioning.max_length is {max_length} tokens"
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
        return Captioner.from_folder(folder, kind, source)
