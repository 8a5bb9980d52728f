"""A captioner captions encoded images, without a pipeline around it."""

import numpy as np
import pytest
import torch
from conftest import untrained_blip
from PIL import Image
from transformers import BlipForConditionalGeneration

from stages.captioning.captioner import Captioner
from stages.captioning.decoding import Lengths
from stages.core.stage import InputError
from stages.image_text.towers import load_towers
from stages.models import blip
from stages.params.captioning import Cell

PROMPT = "a large red"
LENGTHS = Lengths(shortest=5, longest=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder, sharp=5.0)
    return folder


@pytest.fixture(scope="module")
def captioner(folder):
    return Captioner.from_folder(folder)


@pytest.fixture(scope="module")
def states(folder):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]
    return load_towers(folder).encode_images(images)


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beam_captions_are_those_of_transformers(folder, captioner, states, beams):
    model = blip.load(BlipForConditionalGeneration, str(folder))
    prompt = captioner.tokenizer(PROMPT, add_special_tokens=False).input_ids
    tokens = torch.tensor([[captioner.decoder.start, *prompt]]).expand(len(states), -1)
    sequences = model.text_decoder.generate(
        input_ids=tokens,
        encoder_hidden_states=states,
        num_beams=beams,
        do_sample=False,
        min_length=LENGTHS.shortest,
        max_length=LENGTHS.longest,
        eos_token_id=captioner.decoder.end,
        pad_token_id=captioner.decoder.pad,
    )
    texts = captioner.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    kind = {"type": "greedy"} if beams == 1 else {"type": "beam", "beams": beams}
    captions = captioner.caption(states, Cell(**kind, prompt=PROMPT), lengths=LENGTHS)
    assert [f"{PROMPT} {caption}".strip() for caption in captions] == texts


def test_sampled_captions_depend_on_the_seed(captioner, states):
    cell = Cell(type="top_k", k=50, temperature=2.0, prompt=PROMPT)
    captions = [captioner.caption(states, cell, lengths=LENGTHS, seed=seed) for seed in (1, 1, 2)]
    assert captions[0] == captions[1] != captions[2]
    # Rows have random numbers of their own, also if they are of one image.
    same_image = captioner.caption(states[:1].repeat(8, 1, 1), cell, lengths=LENGTHS)
    assert len(set(same_image)) > 1


def test_an_unknown_word_in_the_prompt_is_named(captioner, states):
    with pytest.raises(InputError, match=r"cell.prompt = 'a zebra of': zebra not in the vocabulary"):
        captioner.caption(states, Cell(type="greedy", prompt="a zebra of"))
