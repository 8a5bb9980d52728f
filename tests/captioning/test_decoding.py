"""Decoding from cached states: equal to decoding without a cache, and each row on its own."""

import numpy as np
import pytest
import torch
from conftest import untrained_blip
from small_checkpoints import untrained_catr

from stages.captioning import decoding
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.captioning.sampling import KEEP_ALL, SamplingParams, sample_next
from stages.captioning.text_decoders import BlipDecoder, CatrDecoder
from stages.models import blip
from stages.params.captioning import Cell

PROMPT, OTHER = [10, 20, 30], [11, 21, 31]  # the top-p cell has the other one
CELLS = {
    "greedy": Cell(type="greedy", prompt="a"),
    "k50": Cell(type="top_k", k=50, temperature=1.0, prompt="a"),
    "k5": Cell(type="top_k", k=5, temperature=0.3, prompt="a"),
    "p": Cell(type="top_p", p=0.8, temperature=1.2, prompt="a"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder, sharp=12.0)
    return blip.load_decoder(str(folder))


@pytest.fixture
def states():
    return torch.randn(6, 101, 32)


def streams(images, cells=CELLS, longest=30):
    """Every row's random numbers, from its image and its cell alone."""
    names = list(CELLS)
    return np.stack(
        [[np.random.default_rng([image, names.index(name)]).random(longest) for name in cells] for image in images]
    )


def decode(decoder, states, cells=CELLS, images=range(6)):
    """Tokens by image and cell."""
    images = list(images)
    texts = iter(
        decoder.sample(
            states[images],
            [PROMPT if name != "p" else OTHER for name in cells],
            [CELLS[name] for name in cells],
            streams(images, cells),
        )
    )
    return {(image, name): next(texts) for image in images for name in cells}


def test_cached_equals_uncached_token_by_token(model, states):
    """Every token is what the whole text, read anew without a cache, has chosen."""
    found = decode(CaptionGenerator(BlipDecoder(model), Lengths(10, 30)), states)
    for (image, name), text in found.items():
        row = [model.config.bos_token_id, *(OTHER if name == "p" else PROMPT)]
        uniform = streams([image])[0, list(CELLS).index(name)]
        while len(row) < 30:
            logits = model(torch.tensor([row]), encoder_hidden_states=states[image][None]).logits[:, -1]
            if len(row) < 10:
                logits[:, model.config.sep_token_id] = -torch.inf
            rules = decoding.sampling_params([CELLS[name]], torch.device("cpu"))
            token = sample_next(logits, rules, torch.tensor([uniform[len(row)]]), 0)[0].item()
            if token == model.config.sep_token_id:
                break
            row.append(token)
        assert text == row[1 + len(PROMPT) :], (image, name)


def test_greedy_is_transformers_own(model, states):
    decoder = CaptionGenerator(BlipDecoder(model), Lengths(10, 30))
    start = torch.tensor([[model.config.bos_token_id, *PROMPT]]).repeat(6, 1)
    ends = {"eos_token_id": decoder.end, "pad_token_id": decoder.pad}
    told = model.generate(
        start, encoder_hidden_states=states, do_sample=False, min_length=10, max_length=30, use_cache=False, **ends
    )
    found = decode(decoder, states, ["greedy"])
    for image in range(6):
        assert found[image, "greedy"] == decoder._text(told[image].tolist(), 4)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_texts_do_not_hang_on_the_batch(model, states, batch):
    decoder, found = CaptionGenerator(BlipDecoder(model), Lengths(10, 30)), {}
    for first in range(0, 6, batch):
        found |= decode(decoder, states, images=range(first, min(first + batch, 6)))
    assert found == decode(decoder, states)


def test_texts_do_not_hang_on_the_other_cells(model, states):
    decoder = CaptionGenerator(BlipDecoder(model), Lengths(10, 30))
    whole = decode(decoder, states)
    for name in CELLS:
        assert decode(decoder, states, [name]) == {key: text for key, text in whole.items() if key[1] == name}


def test_sampling_differs_from_greedy_and_between_images_of_one_picture(model, states):
    same = states[:1].expand(6, -1, -1)
    found = decode(CaptionGenerator(BlipDecoder(model), Lengths(10, 30)), same)
    assert len({tuple(found[image, "greedy"]) for image in range(6)}) == 1
    assert len({tuple(found[image, "k50"]) for image in range(6)}) == 6


def test_no_end_before_the_shortest_and_none_beyond_the_longest(model, states):
    always = blip.BlipTextLMHeadModel(model.config)
    always.load_state_dict(model.state_dict())
    end = model.config.sep_token_id
    with torch.no_grad():
        always.cls.predictions.decoder.bias[end] += 1000
    texts = decode(CaptionGenerator(BlipDecoder(always.eval()), Lengths(10, 30)), states)
    assert {len(text) for text in texts.values()} == {10 - 1 - len(PROMPT)}
    with torch.no_grad():
        always.cls.predictions.decoder.bias[end] -= 2000
    texts = decode(CaptionGenerator(BlipDecoder(always.eval()), Lengths(10, 12)), states)
    assert {len(text) for text in texts.values()} == {12 - 1 - len(PROMPT)}


def test_beam_search_finds_likelier_texts_than_greedy(model, states):
    decoder = CaptionGenerator(BlipDecoder(model), Lengths(5, 9))
    searched = decoder.beam_search(states, PROMPT, beams=4)
    greedy = decode(decoder, states, ["greedy"])

    def likelihood(image, text):
        row = torch.tensor([[model.config.bos_token_id, *PROMPT, *text, *([decoder.end] if len(text) < 5 else [])]])
        shares = model(row, encoder_hidden_states=states[image][None]).logits[0].log_softmax(-1)
        told = shares[:-1].gather(1, row[0, 1:, None])[3:]
        return float(told.sum() / row.shape[1])  # as generate compares beams

    better = [likelihood(image, searched[image]) - likelihood(image, greedy[image, "greedy"]) for image in range(6)]
    assert min(better) > -1e-5
    assert max(better) > 0


def test_a_choice_too_close_to_call_is_made_in_double_precision(model, states, monkeypatch):
    """However wide the margin that asks for double precision, the texts are the same."""
    usual = decode(CaptionGenerator(BlipDecoder(model), Lengths(10, 30)), states)
    monkeypatch.setattr(decoding, "ERROR", 0.5)
    decoder = CaptionGenerator(BlipDecoder(model), Lengths(10, 30))
    assert decode(decoder, states) == usual
    assert "exact" in vars(decoder.decoder)  # some were close


def rules(k=KEEP_ALL, temperature=1.0, p=1.0):
    return SamplingParams(torch.tensor([k]), torch.tensor([temperature]).double(), torch.tensor([p]).double())


@pytest.mark.parametrize(
    ("rule", "uniform", "expected"),
    [
        (rules(k=1), 0.99, 2),
        (rules(k=2), 0.32, 0),  # 0.25 and 0.5 are left, as 1/3 and 2/3
        (rules(k=2), 0.34, 2),
        (rules(), 0.24, 0),
        (rules(), 0.26, 1),
        (rules(), 0.40, 2),
        (rules(), 0.90, 3),
        (rules(p=0.7), 0.9, 2),  # 0.5 and 0.25 reach 0.7
        (rules(p=0.76), 0.1, 0),  # the two at 0.125 follow; the one with the lower id first
        (rules(p=0.76), 0.3, 1),
        (rules(temperature=0.5), 0.15, 0),  # squares: 1/16, 1/64, 4/16, 1/64 of 22/64
        (rules(temperature=0.5), 0.20, 1),
    ],
)
def test_choices_by_hand(rule, uniform, expected):
    logits = torch.tensor([[0.25, 0.125, 0.5, 0.125]]).log()
    assert sample_next(logits, rule, torch.tensor([uniform]), 0)[0].item() == expected


def test_what_could_have_gone_otherwise_is_not_sure():
    logits = torch.tensor([[1.0, 1.0 + 1e-6, -3.0], [1.0, 2.0, -3.0]])
    both = SamplingParams(torch.tensor([1, 1]), torch.ones(2).double(), torch.ones(2).double())
    assert sample_next(logits, both, torch.tensor([0.5, 0.5]), 1e-4)[1].tolist() == [False, True]
    close = torch.tensor([[2.0, 1.0, 1.0 + 1e-6, -3.0]])  # which of the two does p let in?
    assert sample_next(close, rules(p=0.7), torch.tensor([0.9]), 1e-4)[1].item() is False
    assert sample_next(close, rules(p=0.5), torch.tensor([0.9]), 1e-4)[1].item() is True
    halves = torch.tensor([[0.0, 0.0]])
    for uniform, sure in ((0.5, False), (0.3, True)):
        assert sample_next(halves, rules(), torch.tensor([uniform]), 1e-4)[1].item() is sure


# The same of CATR


@pytest.fixture(scope="module")
def catr():
    """Its texts end where they like, so that rows leave the batch one by one."""
    model = untrained_catr()
    with torch.no_grad():
        model.mlp.layers[-1].weight.mul_(0.1)
        model.mlp.layers[-1].bias[model.end] += 4
    return model


@pytest.fixture
def grids():
    return torch.randn(6, 5, 4, 64, generator=torch.Generator().manual_seed(4))


def test_catrs_texts_are_chosen_from_whole_texts_token_by_token(catr, grids):
    """Every token is what the whole text, read anew without a cache, has chosen; greedy ones are the likeliest."""
    found = decode(CaptionGenerator(CatrDecoder(catr), Lengths(10, 30)), grids)
    for (image, name), text in found.items():
        prompt = OTHER if name == "p" else PROMPT
        row, uniform = [catr.start, *prompt], streams([image])[0, list(CELLS).index(name)]
        while len(row) < 30:
            logits = catr.logits(torch.tensor([row]), grids[image][None])
            if len(row) < 10:
                logits[:, catr.end] = -torch.inf
            rules = decoding.sampling_params([CELLS[name]], torch.device("cpu"))
            token = sample_next(logits, rules, torch.tensor([uniform[len(row)]]), 0)[0].item()
            assert name != "greedy" or token == logits.argmax().item()
            if token == catr.end:
                break
            row.append(token)
        assert text == row[1 + len(prompt) :], (image, name)
    assert len({tuple(text) for text in found.values()}) == 24  # images and cells matter
    assert len({len(text) for text in found.values()}) > 6


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_catrs_texts_do_not_hang_on_the_batch(catr, grids, batch):
    decoder, found = CaptionGenerator(CatrDecoder(catr), Lengths(10, 30)), {}
    for first in range(0, 6, batch):
        found |= decode(decoder, grids, images=range(first, min(first + batch, 6)))
    assert found == decode(decoder, grids)


def test_catrs_texts_do_not_hang_on_the_other_cells(catr, grids):
    decoder = CaptionGenerator(CatrDecoder(catr), Lengths(10, 30))
    whole = decode(decoder, grids)
    for name in CELLS:
        assert decode(decoder, grids, [name]) == {key: text for key, text in whole.items() if key[1] == name}


def greedy_catr(catr, grids, prompts):
    """Greedy texts by prompt and image."""
    cells, images = [CELLS["greedy"]] * len(prompts), len(grids)
    uniform = np.zeros((images, len(prompts), 20))
    texts = CaptionGenerator(CatrDecoder(catr), Lengths(1, 20)).sample(grids, prompts, cells, uniform)
    return [[tuple(text) for text in texts[place :: len(prompts)]] for place in range(len(prompts))]


def test_catrs_texts_go_on_from_their_prompts(catr, grids):
    """A text's own beginning, given as a prompt, is followed by the rest of it; none at all is a prompt, too."""
    (whole,) = greedy_catr(catr, grids, [[]])
    for image, text in enumerate(whole):
        ((rest,),) = greedy_catr(catr, grids[image][None], [list(text[:2])])
        assert text[2:] == rest
    mine, other = greedy_catr(catr, grids, [PROMPT, OTHER])
    assert mine != other
    assert [mine, other, mine] == greedy_catr(catr, grids, [PROMPT, OTHER, PROMPT])


def test_catr_chooses_in_double_precision_what_is_too_close_to_call(catr, grids, monkeypatch):
    usual = decode(CaptionGenerator(CatrDecoder(catr), Lengths(10, 30)), grids)
    monkeypatch.setattr(decoding, "ERROR", 0.5)
    decoder = CaptionGenerator(CatrDecoder(catr), Lengths(10, 30))
    assert decode(decoder, grids) == usual
    assert "exact" in vars(decoder.decoder)
