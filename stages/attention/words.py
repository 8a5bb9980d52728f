"""Where a caption's decoder looks for each word that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.attention.maps import check_rows, indexed

END = "<end>"


@dataclass(frozen=True)
class Word:
    """A written word and what it looked at: weights of the image's `tokens`, the class token first.

    A word of several pieces has the sum of theirs.
    """

    text: str
    weights: Tensor

    def on_patches(self, grid: tuple[int, int]) -> Tensor:
        """Its map, `(rows, columns)`, without the class token."""
        return self.weights[1:].unflatten(0, grid)


@torch.inference_mode()
def attended(
    decoder: BlipTextLMHeadModel,
    states: Tensor,
    texts: Sequence[list[int]],
    prompted: int,
    layer: int,
    head: int | Literal["mean"],
) -> list[Tensor]:
    """Cross attention of every written token to the image, `(written, tokens)` for each of `N` texts.

    `states` `(N, tokens, dim)`; a text is the token before the prompt, the prompt (`prompted` tokens in all), then
    what was written, its end token included where it has one. One pass with the texts as they are; a token's
    attention is that of the step that wrote it, which reads the token before. Raises `InputError` for a layer or
    head that the decoder has not.
    """
    config = decoder.config
    layer = indexed(config.num_hidden_layers, layer, "attention.captions.layer", "layers")
    if head != "mean":
        head = indexed(config.num_attention_heads, head, "attention.captions.head", "heads")
    longest = max(len(text) for text in texts)
    padded = [text + [config.pad_token_id] * (longest - len(text)) for text in texts]
    read = torch.tensor(padded, device=states.device)[:, :-1]  # behind a text's end nothing is asked
    found = decoder(read, encoder_hidden_states=states, output_attentions=True).cross_attentions[layer]
    weights = check_rows(found)  # (N, heads, read, tokens)
    weights = weights.mean(1) if head == "mean" else weights[:, head]
    return [one[prompted - 1 : len(text) - 1].cpu() for one, text in zip(weights, texts, strict=True)]


def words_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], weights: Tensor) -> list[Word]:
    """The words that `tokens` spell, each with the sum of its pieces' rows of `weights` `(tokens, image tokens)`."""
    words: list[Word] = []
    for piece, token, row in zip(tokenizer.convert_ids_to_tokens(list(tokens)), tokens, weights, strict=True):
        if piece.startswith("##") and words:  # BERT's mark of a piece that goes on
            words[-1] = Word(words[-1].text + piece.removeprefix("##"), words[-1].weights + row)
        else:
            words.append(Word(END if token == tokenizer.sep_token_id else piece, row))
    return words
