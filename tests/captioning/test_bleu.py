"""BLEU by hand, against nltk, and from the command line."""

import subprocess
import sys
from math import exp

import numpy as np
import pytest
from conftest import ROOT
from nltk.translate.bleu_score import corpus_bleu

from stages.captioning.bleu import bleu, bootstrap_bleu, count_ngrams, main

WORDS = ["a", "red", "Star", "above", "the", "blue", "ring", "left", "of"]


def random_texts(count, seed=0):
    """Predictions that miss a tenth of their references' words, and the references."""
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(WORDS, size=rng.integers(5, 14))) for _ in range(count)]
    predictions = [" ".join(word for word in text.split() if rng.random() < 0.9) for text in references]
    return predictions, references


def nltk_bleu(predictions, references):
    reference_words = [[text.lower().split() for text in texts] for texts in references]
    return 100 * corpus_bleu(reference_words, [text.lower().split() for text in predictions])


def test_bleu_by_hand():
    counts = count_ngrams(["the cat is on the mat"], [["the cat sat on the mat"]])
    assert counts.matches.tolist() == [[5, 3, 1, 0]]  # the, cat, on, the, mat; the cat, on the, the mat; on the mat
    assert counts.totals.tolist() == [[6, 5, 4, 3]]
    assert bleu(counts, 1) == pytest.approx(100 * 5 / 6)
    assert bleu(counts, 2) == pytest.approx(100 * (5 / 6 * 3 / 5) ** 0.5)
    assert bleu(counts) == 0  # no 4-gram matches, and there is no smoothing


def test_brevity_penalty_by_hand():
    counts = count_ngrams(["a b c d"], [["a b c d e f"]])
    assert bleu(counts) == pytest.approx(100 * exp(1 - 6 / 4))
    assert bleu(count_ngrams(["a b c d e f"], [["a b c d"]]), 1) == pytest.approx(100 * 4 / 6)


def test_case_is_ignored_and_repeated_words_are_clipped():
    assert bleu(count_ngrams(["The the THE the the"], [["the cat"]]), 1) == pytest.approx(100 * 1 / 5)


def test_several_references_give_the_closest_length_and_the_best_match():
    counts = count_ngrams(["a b c d e"], [["a b", "x c d e y y", "q q q q q q q q q"]])
    assert counts.matches[0].tolist() == [5, 3, 1, 0]
    assert counts.reference_lengths.tolist() == [6]


@pytest.mark.parametrize("count", [1, 3])
def test_bleu_equals_nltk(count):
    predictions, texts = random_texts(60)
    references = [[text, *random_texts(count - 1, seed=index + 1)[1]] for index, text in enumerate(texts)]
    score = bleu(count_ngrams(predictions, references))
    assert score == pytest.approx(nltk_bleu(predictions, references), abs=1e-9)
    assert 5 < score < 95


@pytest.mark.filterwarnings("ignore:.*The hypothesis contains 0 counts")
def test_captions_without_a_match_and_empty_captions_score_zero():
    assert bleu(count_ngrams(["x y", ""], [["a b"], ["c"]])) == 0
    assert bleu(count_ngrams([""], [["a b c d"]])) == 0


def test_bootstrap_draws_surround_the_score_and_repeat():
    predictions, texts = random_texts(200)
    counts = count_ngrams(predictions, [[text] for text in texts])
    draws = bootstrap_bleu(counts, seed=3)
    assert draws.shape == (1000,)
    assert abs(draws.mean() - bleu(counts)) < draws.std()
    assert np.array_equal(draws, bootstrap_bleu(counts, seed=3))


def run_command(*paths):
    command = [sys.executable, "-m", "stages.captioning.bleu", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_scores_text_files_to_six_decimals(tmp_path, capsys):
    predictions, references = random_texts(40)
    (tmp_path / "p.txt").write_text("\n".join(predictions) + "\n")
    (tmp_path / "r.txt").write_text("\n".join(references) + "\n")
    result = run_command(tmp_path / "p.txt", tmp_path / "r.txt")
    expected = nltk_bleu(predictions, [[text] for text in references])
    assert result.stdout.splitlines()[3] == f"BLEU-4 {expected:.6f}"
    for variant in ("\ufeff" + "\n".join(references), "\n".join(references) + " \x0c"):  # byte order mark, form feed
        (tmp_path / "variant.txt").write_text(variant, encoding="utf-8")
        main(tmp_path / "p.txt", [tmp_path / "variant.txt"])
        assert capsys.readouterr().out == result.stdout


def test_command_refuses_files_of_different_lengths(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    (tmp_path / "short.txt").write_text("a\n")
    result = run_command(tmp_path / "p.txt", tmp_path / "short.txt")
    assert result.returncode == 2
    assert "short.txt has 1 lines" in result.stderr
    assert "Traceback" not in result.stderr
