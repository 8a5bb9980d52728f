"""Words that a tokenizer does not know."""

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[float, list[str]]:
    """Return the share of unknown words in `texts`, and these words, the most frequent first."""
    counts = Counter(word for text in texts for word in text.split())
    unknown = [word for word in counts if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids]
    share = sum(counts[word] for word in unknown) / max(counts.total(), 1)
    return share, sorted(unknown, key=lambda word: (-counts[word], word))
