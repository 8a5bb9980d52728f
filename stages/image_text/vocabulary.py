"""Which words a tokenizer does not know."""

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[float, list[str]]:
    """The share of words that the vocabulary lacks, and those words, the most frequent first."""
    counted = Counter(word for text in texts for word in text.split())
    unknown = {
        word: count
        for word, count in counted.items()
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
    }
    return sum(unknown.values()) / max(counted.total(), 1), sorted(unknown, key=lambda word: (-unknown[word], word))
