"""BLEU as nltk counts it, from counts that add up."""

import subprocess
import sys
from math import exp

import numpy as np
import pytest
from conftest import ROOT
from nltk.translate.bleu_score import corpus_bleu

from stages.captioning.bleu import bleu, bootstrap_bleu, count_ngrams
from stages.captioning.bleu import main as command

WORDS = ["a", "red", "Star", "above", "the", "blue", "ring", "left", "of"]


def made_up(number, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 14))) for _ in range(number)]
    spoilt = [" ".join(word for word in text.split() if rng.random() < 0.9) for text in texts]
    return spoilt, texts


def test_bleu_by_hand():
    counts = count_ngrams(["the cat is on the mat"], [["the cat sat on the mat"]])
    assert counts.matched.tolist() == [[5, 3, 1, 0]]  # the, cat, on, the, mat; the cat, on the, the mat; on the mat
    assert counts.possible.tolist() == [[6, 5, 4, 3]]
    assert bleu(counts, 1) == pytest.approx(100 * 5 / 6)
    assert bleu(counts, 2) == pytest.approx(100 * (5 / 6 * 3 / 5) ** 0.5)
    assert bleu(counts) == 0  # no 4-gram matches, and nothing is smoothed


def test_the_brevity_penalty_by_hand():
    counts = count_ngrams(["a b c d"], [["a b c d e f"]])
    assert bleu(counts) == pytest.approx(100 * exp(1 - 6 / 4))
    assert bleu(count_ngrams(["a b c d e f"], [["a b c d"]]), 1) == pytest.approx(100 * 4 / 6)


def test_case_and_repeated_words_are_clipped():
    assert bleu(count_ngrams(["The the THE the the"], [["the cat"]]), 1) == pytest.approx(100 * 1 / 5)


def test_several_references_take_the_closest_length_and_the_best_match():
    counts = count_ngrams(["a b c d e"], [["a b", "x c d e y y", "q q q q q q q q q"]])
    assert counts.matched[0].tolist() == [5, 3, 1, 0]
    assert counts.reference.tolist() == [6]


@pytest.mark.parametrize("references", [1, 3])
def test_equal_to_nltk(references):
    predictions, told = made_up(60)
    told = [[text, *made_up(references - 1, seed=index + 1)[1]] for index, text in enumerate(told)]
    ours = bleu(count_ngrams(predictions, told))
    lower = [[text.lower().split() for text in some] for some in told]
    theirs = 100 * corpus_bleu(lower, [text.lower().split() for text in predictions])
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert 5 < ours < 95


@pytest.mark.filterwarnings("ignore:.*The hypothesis contains 0 counts")
def test_nothing_matches_and_empty_captions_score_zero():
    assert bleu(count_ngrams(["x y", ""], [["a b"], ["c"]])) == 0
    assert bleu(count_ngrams([""], [["a b c d"]])) == 0


def test_bootstrap_draws_lie_around_the_score():
    predictions, told = made_up(200)
    counts = count_ngrams(predictions, [[text] for text in told])
    draws = bootstrap_bleu(counts, seed=3)
    assert draws.shape == (1000,)
    assert abs(draws.mean() - bleu(counts)) < draws.std()
    assert np.array_equal(draws, bootstrap_bleu(counts, seed=3))


def run(*arguments):
    command = [sys.executable, "-m", "stages.captioning.bleu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_reproduces_any_pair_of_files_to_six_decimals(tmp_path, capsys):
    predictions, told = made_up(40)
    (tmp_path / "p.txt").write_text("\n".join(predictions) + "\n")
    (tmp_path / "r.txt").write_text("\n".join(told) + "\n")
    shown = run(tmp_path / "p.txt", tmp_path / "r.txt")
    expected = 100 * corpus_bleu(
        [[text.lower().split()] for text in told], [text.lower().split() for text in predictions]
    )
    assert shown.stdout.splitlines()[3] == f"BLEU-4 {expected:.6f}"
    for odd in ("\ufeff" + "\n".join(told), "\n".join(told) + " \x0c"):  # a byte order mark, a form feed
        (tmp_path / "odd.txt").write_text(odd, encoding="utf-8")
        command(tmp_path / "p.txt", [tmp_path / "odd.txt"])
        assert capsys.readouterr().out == shown.stdout
    (tmp_path / "short.txt").write_text("a\n")
    refused = run(tmp_path / "p.txt", tmp_path / "short.txt")
    assert refused.returncode == 2
    assert "short.txt has 1 lines" in refused.stderr
    assert "Traceback" not in refused.stderr
