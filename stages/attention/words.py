"""The caption decoder's cross-attention to the image, word by word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.attention.maps import check_rows_sum_to_one, resolve_index
from stages.captioning.captioner import Captioner
from stages.captioning.text_decoders import TextDecoder
from stages.models.compute import get_device
from stages.params.attention import CaptionAttention

END = "<end>"


@dataclass(frozen=True)
class Word:
    """A generated word and its attention `weights` to the image tokens, summed over its word pieces.

    The last rows x columns tokens, with (rows, columns) = `grid`, are the patches.
    """

    text: str
    weights: Tensor
    grid: tuple[int, int]

    @property
    def patch_attention(self) -> Tensor:
        """The attention to the patches, `(rows, columns)`."""
        return self.weights[-self.grid[0] * self.grid[1] :].unflatten(0, self.grid)

    @property
    def class_token_share(self) -> float:
        """Percent of the attention on tokens before the patches: BLIP's class token; 0 for CATR, which has none."""
        prefix = len(self.weights) - self.grid[0] * self.grid[1]
        return 100 * float(self.weights[:prefix].sum() / self.weights.sum())


@torch.inference_mode()
def generated_token_attention(
    decoder: TextDecoder,
    states: Tensor,
    texts: Sequence[list[int]],
    prompt_length: int,
    layer: int,
    head: int | Literal["mean"],
) -> list[Tensor]:
    """Cross-attention of every generated token, `(generated, image tokens)` for each of `N` texts.

    `states` are the encoded images. A text is the start token and the prompt (`prompt_length` tokens in all), then the
    generated tokens. A token's attention is that of the step that generated it. Raises `InputError` for a layer or
    head that the decoder does not have.
    """
    layer = resolve_index(decoder.layers, layer, "attention.captions.layer", "layers")
    if head != "mean":
        head = resolve_index(decoder.heads, head, "attention.captions.head", "heads")
    # One pass over the whole texts equals the steps of decoding, since a token attends only to those before it. For
    # the same reason, padding after a text does not change it.
    longest = max(len(text) for text in texts)
    padded = torch.tensor([text + [decoder.pad] * (longest - len(text)) for text in texts], device=states.device)
    # Position i reads token i and generates token i + 1, so the last token is never read.
    weights = check_rows_sum_to_one(decoder.cross_attention(padded[:, :-1], states, layer))
    weights = weights.mean(1) if head == "mean" else weights[:, head]  # (N, longest - 1, image tokens)
    return [
        text_weights[prompt_length - 1 : len(text) - 1].cpu() for text, text_weights in zip(texts, weights, strict=True)
    ]


def merge_word_pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], weights: Tensor, grid: tuple[int, int]
) -> list[Word]:
    """The words of `tokens`, each with the sum of its pieces' rows of `weights` `(tokens, image tokens)`."""
    words: list[Word] = []
    for piece, token, row in zip(tokenizer.convert_ids_to_tokens(list(tokens)), tokens, weights, strict=True):
        text = END if token == tokenizer.sep_token_id else piece.removeprefix("##")
        if piece.startswith("##") and words:  # BERT marks pieces that continue a word; the first, one of the prompt
            words[-1] = Word(words[-1].text + text, words[-1].weights + row, grid)
        else:
            words.append(Word(text, row, grid))
    return words


def extract_words(
    captioner: Captioner,
    params: CaptionAttention,
    states: Tensor,
    prompt: list[int],
    captions: list[list[int]],
    max_length: int,
) -> list[list[Word]]:
    """The words of every caption; the last is `<end>`, unless the caption was cut off at `max_length`.

    `states` `(N, rows, columns, dim)` are the encoded images (BLIP's have one row of tokens). `prompt` and `captions`
    are token ids; captions exclude the prompt and the end token.
    """
    decoder = captioner.decoder
    start = [decoder.start, *prompt]
    room = max_length - len(start)
    generated = [caption if len(caption) >= room else [*caption, decoder.end] for caption in captions]
    states = states.to(get_device()).float()
    weights_per_text = generated_token_attention(
        decoder, states, [start + tokens for tokens in generated], len(start), params.layer, params.head
    )
    grid = decoder.grid(states)
    return [
        merge_word_pieces(captioner.tokenizer, tokens, weights, grid)
        for tokens, weights in zip(generated, weights_per_text, strict=True)
    ]
