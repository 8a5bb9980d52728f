"""Captions by cell, seed and image: which random numbers they follow from, where they end, and what is written."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import torch
from conftest import ROOT

from stages.captioning import PREDICTIONS
from stages.captioning.caption import CaptionScorer, write_captions
from stages.captioning.caption_job import ORIGINAL_BATCH, CaptionJob, decode_batch
from stages.captioning.decoding import CaptionGenerator, Lengths
from stages.data.manifest import Row
from stages.params.captioning import Cell
from stages.params.experiment import load_experiment

START, END, PROMPT = 1, 2, 3
LONGEST = 12
SHORTEST = 3
CELLS = {
    "greedy": Cell(type="greedy", prompt="p"),
    "k1": Cell(type="top_k", k=1, temperature=1.0, prompt="p"),  # samples, but always the same
    "k50": Cell(type="top_k", k=50, temperature=1.0, prompt="p"),
}


class ScriptedDecoder:
    """A text decoder whose logits are written in advance: `states` `(images, longest)` has the likeliest tokens.

    The cache is the number of tokens read. The other tokens are equally likely among themselves.
    """

    start, end, pad = START, END, 0
    vocabulary = 100

    def __init__(self, gap):
        self.gap = gap  # between the logit of the likeliest token and the others

    def new_cache(self, states):
        return SimpleNamespace(length=0)

    def next_logits(self, tokens, states, cache, rows, rows_per_image):
        cache.length += tokens.shape[1]
        return self._logits(states[rows // rows_per_image, cache.length])

    def select_rows(self, cache, rows):
        pass

    def next_logits_float64(self, tokens, states):
        return self._logits(states[:, tokens.shape[1]]).double()

    def _logits(self, likeliest):
        return self.gap * torch.nn.functional.one_hot(likeliest.long(), self.vocabulary).float()


@dataclass
class Table:
    """Stands in for a feature table."""

    image_ids: list[str]
    states: torch.Tensor

    @property
    def grids(self):
        return [(1, LONGEST)] * len(self.image_ids)


def scripted_table(ends):
    """Images whose likeliest tokens are 10, 11, ... by position, with the end token at the position `ends`."""
    states = torch.arange(10, 10 + LONGEST).repeat(len(ends), 1)
    states[torch.arange(len(ends)), torch.tensor(ends)] = END
    return Table([f"image_{number}" for number in range(len(ends))], states)


def decode_table(table, *, gap=50.0, **captioning):
    """Captions by cell and seed, then image ID."""
    experiment = load_experiment(ROOT / "params.yaml")
    task = experiment.captioning.model_copy(update={"cells": CELLS, "seeds": [1, 2], **captioning})
    generator = CaptionGenerator(ScriptedDecoder(gap), Lengths(SHORTEST, LONGEST), task.stop)
    experiment = experiment.model_copy(update={"captioning": task})
    captions = {run: {} for run in task.runs}
    for indices in CaptionJob(generator, table, {"p": [PROMPT]}, experiment).split_batches(range(len(table.image_ids))):
        image_ids = [table.image_ids[index] for index in indices]
        batch = decode_batch(generator, image_ids, table.states[indices], {"p": [PROMPT]}, experiment)
        for image_id, image in zip(image_ids, batch, strict=True):
            for run, tokens in zip(task.runs, image, strict=True):
                captions[run][image_id] = tokens
    return captions


ENDS = [4] * ORIGINAL_BATCH + [5] * 3  # two batches of the original
ENDS[7] = 9


def test_captions_stop_at_their_own_end_token():
    tokens = decode_table(scripted_table(ENDS))
    for name, seed in (("greedy", None), ("k1", 1), ("k1", 2)):
        captions = list(tokens[name, seed].values())
        assert captions == [list(range(12, 10 + end)) for end in ENDS]


def test_captions_stop_where_the_last_of_their_batch_ends():
    """The end token stays among the tokens; what follows it is sampled. The next batch does not depend on this one."""
    tokens = decode_table(scripted_table(ENDS), stop="batch")
    for name, seed in (("greedy", None), ("k1", 1), ("k1", 2)):
        captions = list(tokens[name, seed].values())
        assert captions[0] == [12, 13, END, 15, 16, 17, 18, 19]
        assert captions[7] == [12, 13, 14, 15, 16, 17, 18, END]
        assert captions[1:7] == [captions[0]] * 6
        assert captions[8:ORIGINAL_BATCH] == [captions[0]] * 8
        assert captions[ORIGINAL_BATCH:] == [[12, 13, 14, END]] * 3


def test_a_caption_without_an_end_lets_its_batch_run_to_the_greatest_length():
    table = scripted_table(ENDS)
    table.states[7] = 50
    captions = list(decode_table(table, stop="batch")["greedy", None].values())
    assert {len(caption) for caption in captions[:ORIGINAL_BATCH]} == {LONGEST - 2}
    assert {len(caption) for caption in captions[ORIGINAL_BATCH:]} == {4}


def test_every_cell_and_seed_of_a_batch_ends_on_its_own():
    """Greedy captions end early; those that sample run on as long as their own cell and seed does."""
    table = scripted_table([4] * ORIGINAL_BATCH)
    tokens = decode_table(table, gap=4.0, stop="batch")  # the likeliest token has 54 % of the mass
    lengths = {run: {len(caption) for caption in captions.values()} for run, captions in tokens.items()}
    assert all(len(of_run) == 1 for of_run in lengths.values())
    assert lengths["greedy", None] == {3}
    assert min(lengths["k50", 1]) > 3


def test_captions_of_a_seed_do_not_depend_on_the_other_seeds():
    table = scripted_table([4] * 5)
    tokens = decode_table(table, gap=3.0)
    assert set(tokens) == {("greedy", None), ("k1", 1), ("k1", 2), ("k50", 1), ("k50", 2)}
    assert tokens["k50", 1] != tokens["k50", 2]
    for seed in (1, 2):
        assert decode_table(table, gap=3.0, seeds=[seed])["k50", seed] == tokens["k50", seed]


def test_a_captions_random_numbers_follow_from_seed_cell_and_image(monkeypatch):
    streams = []
    sample = CaptionGenerator.sample
    monkeypatch.setattr(CaptionGenerator, "sample", lambda self, *args: streams.append(args[3]) or sample(self, *args))
    decode_table(scripted_table([4] * 3))
    seed = load_experiment(ROOT / "params.yaml").seed_for("captioning/k50", 2)
    runs = ["greedy", "k1 1", "k1 2", "k50 1", "k50 2"]
    expected = np.random.default_rng([seed, *b"image_1"]).random(LONGEST)
    np.testing.assert_array_equal(streams[0][1, runs.index("k50 2")], expected)


def test_captions_are_written_with_their_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tuple(Row(image_id, "val", "", captions=("x",)) for image_id in "ab")
    scorer = CaptionScorer(rows, ["r", "s"], 0, {})
    captions = {("greedy", None): ["c", "d"], ("k50", 2): ["e", "f"]}
    tokens = {run: {"a": [1], "b": [2, 3]} for run in captions}
    write_captions(scorer, captions, tokens)
    table = pq.read_table(PREDICTIONS)
    assert table.column_names == ["cell", "seed", "image_id", "caption", "tokens", "reference"]
    assert str(table.schema.field("seed").type) == "int64"
    assert table.column("seed").to_pylist() == [None, None, 2, 2]
    assert table.to_pylist()[3] == {
        "cell": "k50",
        "seed": 2,
        "image_id": "b",
        "caption": "f",
        "tokens": [2, 3],
        "reference": "s",
    }
