"""Where a caption's decoder looks for each word that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.attention.maps import check_rows, resolve_index
from stages.captioning.text_decoders import TextDecoder

END = "<end>"


@dataclass(frozen=True)
class Word:
    """A written word and what it looked at: `weights` of the image's tokens, of which a `grid` of patches is the last.

    A word of several pieces has the sum of theirs.
    """

    text: str
    weights: Tensor
    grid: tuple[int, int]

    @property
    def on_patches(self) -> Tensor:
        """Its map, `(rows, columns)`, without the class token."""
        return self.weights[-self.grid[0] * self.grid[1] :].unflatten(0, self.grid)

    @property
    def elsewhere(self) -> float:
        """The share of its weights, in percent, on tokens that are no patches: BLIP's class token."""
        rest = self.weights[: len(self.weights) - self.grid[0] * self.grid[1]]
        return 100 * float(rest.sum() / self.weights.sum())


@torch.inference_mode()
def attended(
    decoder: TextDecoder,
    states: Tensor,
    texts: Sequence[list[int]],
    prompted: int,
    layer: int,
    head: int | Literal["mean"],
) -> list[Tensor]:
    """Cross attention of every written token to the image, `(written, image tokens)` for each of `N` texts.

    `states` are the images'; a text is the token before the prompt, the prompt (`prompted` tokens in all), then
    what was written, its end token included where it has one. One pass with the texts as they are; a token's
    attention is that of the step that wrote it, which reads the token before. Raises `InputError` for a layer or
    head that the decoder has not.
    """
    layer = resolve_index(decoder.layers, layer, "attention.captions.layer", "layers")
    if head != "mean":
        head = resolve_index(decoder.heads, head, "attention.captions.head", "heads")
    longest = max(len(text) for text in texts)
    padded = [text + [decoder.pad] * (longest - len(text)) for text in texts]
    read = torch.tensor(padded, device=states.device)[:, :-1]  # behind a text's end nothing is asked
    weights = check_rows(decoder.cross_attention(read, states, layer))  # (N, heads, read, image tokens)
    weights = weights.mean(1) if head == "mean" else weights[:, head]
    return [one[prompted - 1 : len(text) - 1].cpu() for one, text in zip(weights, texts, strict=True)]


def words_of(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], weights: Tensor, grid: tuple[int, int]
) -> list[Word]:
    """The words that `tokens` spell, each with the sum of its pieces' rows of `weights` `(tokens, image tokens)`."""
    words: list[Word] = []
    for piece, token, row in zip(tokenizer.convert_ids_to_tokens(list(tokens)), tokens, weights, strict=True):
        if piece.startswith("##") and words:  # BERT's mark of a piece that goes on
            words[-1] = Word(words[-1].text + piece.removeprefix("##"), words[-1].weights + row, grid)
        else:
            words.append(Word(END if token == tokenizer.sep_token_id else piece, row, grid))
    return words
