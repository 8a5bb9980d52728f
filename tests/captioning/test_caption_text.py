"""Captions are decoded together with their prompt and cleaned up, then the prompt is cut off."""

import pytest
from transformers import BertTokenizer

from stages.captioning.captioner import caption_text
from stages.data.scenes import web
from stages.models import blip, blip_original, catr

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "picture", "of", "the", "man", "s", "hat", "is", "black", "don", "t", "often", "cat", "seen"]
PIECES = [*WORDS, "##ten", "##s", "'", ".", ",", "!", "?"]
PROMPT = "a picture of"


@pytest.fixture(params=["blip", "catr"])
def tokenizer(request, tmp_path):
    """A word piece tokenizer, written to a folder and read back as the pipeline does."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *PIECES]) + "\n")
    folder = tmp_path / "saved"
    if request.param == "blip":
        blip_original.tokenizer(vocabulary).save_pretrained(folder)
        return blip.load_tokenizer(str(folder))
    BertTokenizer(vocab=str(vocabulary), do_lower_case=True).save_pretrained(folder)
    return catr.load_tokenizer(folder)


def token_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("the man ' s hat", "the man's hat"),
        ("don ' t , man !", "don't, man!"),
        ("a cat ##s . is the hat black ?", "a cats. is the hat black?"),
        ("##ten seen", "ten seen"),  # the text is "a picture often seen"
        ("##s", "s"),
        ("' s hat", "'s hat"),
        (". a cat", ". a cat"),
        ("a cat [SEP] the hat", "a cat the hat"),  # after the end, with `stop: batch`
        ("a cat [SEP] ##s [PAD] ##ten [CLS] [SEP]", "a catsten"),
        ("[SEP] a cat", "a cat"),
        ("", ""),
    ],
)
def test_text_of_pieces(tokenizer, pieces, expected):
    caption = tokenizer.convert_tokens_to_ids(pieces.split())
    assert tokenizer.unk_token_id not in caption
    assert caption_text(tokenizer, token_ids(tokenizer, PROMPT), caption) == expected


def test_a_prompt_with_an_apostrophe_is_cut_off_after_the_clean_up(tokenizer):
    prompt = token_ids(tokenizer, "The man's  hat,")
    assert caption_text(tokenizer, prompt, token_ids(tokenizer, "a cat")) == "a cat"


def test_a_prompt_may_be_empty(tokenizer):
    assert caption_text(tokenizer, [], token_ids(tokenizer, "a man's cat")) == "a man's cat"


def test_the_start_token_is_not_in_the_text(tokenizer):
    start = tokenizer.bos_token_id or tokenizer.cls_token_id
    assert caption_text(tokenizer, token_ids(tokenizer, PROMPT), [start, *token_ids(tokenizer, "a cat")]) == "a cat"


def test_words_of_the_small_blip_are_joined_by_spaces():
    tokenizer = blip.word_tokenizer(web.vocabulary())
    prompt, caption = token_ids(tokenizer, PROMPT), token_ids(tokenizer, "a large red heart")
    assert caption_text(tokenizer, prompt, caption) == "a large red heart"
