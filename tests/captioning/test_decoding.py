"""Batched decoding with a cache equals decoding one caption at a time without; each row depends on itself alone."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import untrained_blip
from small_checkpoints import untrained_catr

from stages.captioning import decoding
from stages.captioning.decoding import CaptionGenerator, Lengths, batch_caption_tokens, caption_tokens
from stages.captioning.sampling import NO_TOP_K, SamplingParams, sample_next
from stages.captioning.text_decoders import BlipDecoder, CatrDecoder
from stages.models import blip
from stages.params.captioning import Cell

CELLS = {
    "greedy": Cell(type="greedy", prompt="a"),
    "k50": Cell(type="top_k", k=50, temperature=1.0, prompt="a"),
    "k5": Cell(type="top_k", k=5, temperature=0.3, prompt="a"),
    "p": Cell(type="top_p", p=0.8, temperature=1.2, prompt="b"),
}
PROMPTS = {"a": [10, 20, 30], "b": [11, 21, 31]}
IMAGES = 6


@pytest.fixture(scope="module")
def blip_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder, sharp=12.0)
    return blip.load_decoder(str(folder))


@pytest.fixture(scope="module")
def catr_model():
    """Its captions end at various lengths, so that rows leave the batch one by one."""
    model = untrained_catr()
    with torch.no_grad():
        model.mlp.layers[-1].weight.mul_(0.1)
        model.mlp.layers[-1].bias[model.end] += 4
    return model


@pytest.fixture(params=["blip", "catr"])
def decoder(request):
    """A new decoder, without its float64 copy."""
    kinds = {"blip": BlipDecoder, "catr": CatrDecoder}
    return kinds[request.param](request.getfixturevalue(f"{request.param}_model"))


@pytest.fixture
def states(decoder):
    generator = torch.Generator().manual_seed(4)
    shape = (101, 32) if isinstance(decoder, BlipDecoder) else (5, 4, 64)
    return torch.randn(IMAGES, *shape, generator=generator)


def random_stream(image, name):
    """The random numbers of one caption, from its image and cell alone."""
    return np.random.default_rng([image, list(CELLS).index(name)]).random(30)


def decode(decoder, states, cells=CELLS, images=range(IMAGES), lengths=(10, 30), stop="end_token"):
    """Captions by image and cell."""
    images = list(images)
    captions = CaptionGenerator(decoder, Lengths(*lengths), stop).sample(
        states[images],
        [PROMPTS[CELLS[name].prompt] for name in cells],
        [CELLS[name] for name in cells],
        np.stack([[random_stream(image, name) for name in cells] for image in images]),
    )
    keys = [(image, name) for image in images for name in cells]
    return dict(zip(keys, captions, strict=True))


def whole_text(decoder, states, image, name):
    """Start token, prompt and 30 tokens in all, whether or not some are end tokens.

    Without a batch, a cache and float32.
    """
    params = SamplingParams.from_cells([CELLS[name]], torch.device("cpu"))
    stream = torch.from_numpy(random_stream(image, name))
    text = [decoder.start, *PROMPTS[CELLS[name].prompt]]
    while len(text) < 30:
        logits = decoder.next_logits_float64(torch.tensor([text]), states[image][None])
        if len(text) < 10:
            logits[:, decoder.end] = -torch.inf
        token = sample_next(logits, params, stream[len(text), None], 0)[0].item()
        assert name != "greedy" or token == logits.argmax().item()
        text.append(token)
    return text


def test_batched_cached_decoding_equals_reading_the_whole_text_anew(decoder, states, monkeypatch):
    """Choices too close for float32 must agree as well."""
    captions = decode(decoder, states)
    run_on = decode(decoder, states, stop="batch")
    monkeypatch.setattr(decoding, "LOGIT_ERROR", 1e9)  # repeat all choices: float32 logits do not matter
    next_logits = decoder.next_logits
    monkeypatch.setattr(decoder, "next_logits", lambda *args: torch.zeros_like(next_logits(*args)))
    repeated = decode(decoder, states, stop="batch")
    for name in CELLS:
        texts = [whole_text(decoder, states, image, name) for image in range(IMAGES)]
        expected = [caption_tokens(text, 4, decoder.end) for text in texts]
        assert [captions[image, name] for image in range(IMAGES)] == expected
        ends = [text.index(decoder.end) if decoder.end in text else 29 for text in texts]
        expected = [text[4 : max(ends) + 1] for text in texts]
        assert [run_on[image, name] for image in range(IMAGES)] == expected
        assert [repeated[image, name] for image in range(IMAGES)] == expected


def test_captions_of_a_batch_have_the_length_of_the_longest():
    texts = [[1, 7, 5, 9, 6, 9, 3], [1, 7, 5, 6, 9, 5, 3], [1, 7, 9, 9, 9, 9, 9]]
    assert batch_caption_tokens(texts, 2, end=9) == [[5, 9, 6], [5, 6, 9], [9, 9, 9]]
    assert batch_caption_tokens([[1, 7, 9, 2], [1, 7, 5, 6]], 2, end=9) == [[9, 2], [5, 6]]  # one was cut off


def test_captions_differ_between_images_and_cells_and_in_length(catr_model):
    states = torch.randn(IMAGES, 5, 4, 64, generator=torch.Generator().manual_seed(4))
    captions = decode(CatrDecoder(catr_model), states)
    assert len(set(map(tuple, captions.values()))) == len(captions)
    assert len({len(caption) for caption in captions.values()}) > 6


def test_greedy_captions_equal_transformers_generate(blip_model):
    decoder = BlipDecoder(blip_model)
    states = torch.randn(IMAGES, 101, 32)
    sequences = (
        deepcopy(blip_model)
        .double()
        .generate(
            torch.tensor([[decoder.start, *PROMPTS["a"]]]).repeat(IMAGES, 1),
            encoder_hidden_states=states.double(),
            do_sample=False,
            min_length=10,
            max_length=30,
            use_cache=False,
            eos_token_id=decoder.end,
            pad_token_id=decoder.pad,
        )
    )
    captions = decode(decoder, states, ["greedy"])
    for image, sequence in enumerate(sequences.tolist()):
        assert captions[image, "greedy"] == caption_tokens(sequence, 4, decoder.end)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_captions_do_not_depend_on_the_batch(decoder, states, batch):
    captions = {}
    for first in range(0, IMAGES, batch):
        captions |= decode(decoder, states, images=range(first, min(first + batch, IMAGES)))
    assert captions == decode(decoder, states)


def test_captions_do_not_depend_on_the_other_cells(decoder, states):
    captions = decode(decoder, states)
    for name in CELLS:
        expected = {key: caption for key, caption in captions.items() if key[1] == name}
        assert decode(decoder, states, [name]) == expected


def test_choices_repeated_in_double_precision_do_not_change(decoder, states, monkeypatch):
    """The captions are the same, however many choices are repeated."""
    expected = decode(decoder, states)
    monkeypatch.setattr(decoding, "LOGIT_ERROR", 0.5)
    assert decode(decoder, states) == expected
    assert "model_float64" in vars(decoder)  # it was used


def test_sampling_differs_between_equal_images_and_greedy_does_not(blip_model):
    captions = decode(BlipDecoder(blip_model), torch.randn(1, 101, 32).expand(IMAGES, -1, -1))
    assert len({tuple(captions[image, "greedy"]) for image in range(IMAGES)}) == 1
    assert len({tuple(captions[image, "k50"]) for image in range(IMAGES)}) == IMAGES


@pytest.mark.parametrize(("end_bias", "longest", "expected"), [(1000, 30, 10), (-1000, 12, 12)])
def test_captions_respect_the_shortest_and_longest_length(blip_model, end_bias, longest, expected):
    model = deepcopy(blip_model)
    with torch.no_grad():
        model.cls.predictions.decoder.bias[model.config.sep_token_id] += end_bias
    captions = decode(BlipDecoder(model), torch.randn(IMAGES, 101, 32), lengths=(10, longest))
    assert {len(caption) for caption in captions.values()} == {expected - 1 - len(PROMPTS["a"])}


def test_beam_search_finds_likelier_captions_than_greedy(blip_model):
    decoder = BlipDecoder(blip_model)
    states = torch.randn(IMAGES, 101, 32)
    by_beam = CaptionGenerator(decoder, Lengths(5, 9)).beam_search(states, PROMPTS["a"], beams=4)
    greedy = decode(decoder, states, ["greedy"], lengths=(5, 9))

    def likelihood(image, caption):
        """Mean log-probability over all tokens, as `generate` compares beams."""
        text = [decoder.start, *PROMPTS["a"], *caption]
        if len(caption) < 5:
            text.append(decoder.end)
        tokens = torch.tensor([text])
        logits = decoder.model_float64(tokens, encoder_hidden_states=states[image][None].double()).logits[0]
        log_probabilities = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])
        return float(log_probabilities[3:].sum() / len(text))

    pairs = [(likelihood(image, by_beam[image]), likelihood(image, greedy[image, "greedy"])) for image in range(IMAGES)]
    largest = max(abs(value) for pair in pairs for value in pair)
    gains = [beam - greedy for beam, greedy in pairs]
    # Beam search compares sums of float32 values, off by about 1e-7 of their size for each of 9 tokens and 2 layers.
    assert min(gains) > -1e-5 * largest
    assert max(gains) > 0


def greedy_captions(decoder, states, prompts):
    """Greedy captions by prompt, then image."""
    generator = CaptionGenerator(decoder, Lengths(1, 20))
    captions = generator.sample(
        states, prompts, [CELLS["greedy"]] * len(prompts), np.zeros((len(states), len(prompts), 20))
    )
    return [captions[first :: len(prompts)] for first in range(len(prompts))]


def test_a_caption_continues_its_prompt(decoder, states):
    """A caption's own beginning, given as a prompt, is continued by the rest of it. A prompt may be empty."""
    (captions,) = greedy_captions(decoder, states, [[]])
    for image, caption in enumerate(captions):
        ((rest,),) = greedy_captions(decoder, states[image][None], [caption[:2]])
        assert caption[2:] == rest


def test_each_cell_continues_its_own_prompt(decoder, states):
    first, second = greedy_captions(decoder, states, [PROMPTS["a"], PROMPTS["b"]])
    assert first != second
    assert greedy_captions(decoder, states, [PROMPTS["a"], PROMPTS["b"], PROMPTS["a"]]) == [first, second, first]


def sampling_params(top_k=NO_TOP_K, temperature=1.0, top_p=1.0):
    return SamplingParams(torch.tensor([top_k]), torch.tensor([temperature]).double(), torch.tensor([top_p]).double())


@pytest.mark.parametrize(
    ("params", "uniform", "expected"),
    [
        (sampling_params(top_k=1), 0.99, 2),
        (sampling_params(top_k=2), 0.32, 0),  # 0.25 and 0.5 are left: 1/3 and 2/3
        (sampling_params(top_k=2), 0.34, 2),
        (sampling_params(), 0.24, 0),
        (sampling_params(), 0.26, 1),
        (sampling_params(), 0.40, 2),
        (sampling_params(), 0.90, 3),
        (sampling_params(top_p=0.7), 0.9, 2),  # 0.5 and 0.25 reach 0.7
        (sampling_params(top_p=0.76), 0.1, 0),  # the two tokens at 0.125 follow, the lower ID first
        (sampling_params(top_p=0.76), 0.3, 1),
        (sampling_params(temperature=0.5), 0.15, 0),  # squared: 1/16, 1/64, 4/16, 1/64 of 22/64
        (sampling_params(temperature=0.5), 0.20, 1),
    ],
)
def test_sampled_tokens_by_hand(params, uniform, expected):
    logits = torch.tensor([[0.25, 0.125, 0.5, 0.125]]).log()
    assert sample_next(logits, params, torch.tensor([uniform]), 0)[0].item() == expected


@pytest.mark.parametrize(
    ("logits", "params", "uniform", "expected"),
    [
        ([1.0, 1.0 + 1e-6, -3.0], sampling_params(top_k=1), 0.5, False),
        ([1.0, 2.0, -3.0], sampling_params(top_k=1), 0.5, True),
        ([2.0, 1.0, 1.0 + 1e-6, -3.0], sampling_params(top_p=0.7), 0.9, False),  # which of the equal two is in?
        ([2.0, 1.0, 1.0 + 1e-6, -3.0], sampling_params(top_p=0.5), 0.9, True),  # neither
        ([0.0, 0.0], sampling_params(), 0.5, False),  # at the border of two intervals
        ([0.0, 0.0], sampling_params(), 0.3, True),
    ],
)
def test_a_choice_near_a_border_is_not_certain(logits, params, uniform, expected):
    logits = torch.tensor([logits], dtype=torch.float64)
    assert sample_next(logits, params, torch.tensor([uniform]), 1e-4)[1].item() is expected
