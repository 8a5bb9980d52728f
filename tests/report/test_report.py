"""The report prints what the runs hold, next to the original's numbers."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from stages.core.runs import RUNS, Run
from stages.core.skipped import mark_skipped
from stages.data.manifest import Manifest, Row
from stages.params.experiment import load_experiment
from stages.report import attention, captioning, classification, retrieval, segmentation
from stages.report.__main__ import skip_reasons
from stages.report.claims import Claim, claim_lines
from stages.report.colors import class_colors
from stages.report.curves import write_curves
from stages.report.numbers import format_scientific
from stages.report.original import load_original
from stages.report.overlays import overlay
from stages.report.page import build_page
from stages.report.results import Result
from stages.report.section import Inputs, Section, render
from stages.report.tables import Table


def result(task, name, metrics, params=None, **fields):
    return Result(Run(task, name, task, params or {}, metrics, **fields), metrics)


def head(name, miou):
    return result("segmentation", name, {"miou": miou, "miou_low": miou - 1, "miou_high": miou + 1})


def test_table_1_has_the_originals_rows_in_its_order_and_two_decimals():
    heads = [head("mine", 1.0), head("transformer_shared_qk", 20.004), head("linear", 12.345), head("transformer", 60)]
    table = segmentation.table(heads)
    assert table.columns == ("Head", "Validation mIoU", "95 % interval", "Original", "Difference")
    assert table.rows == (
        ("Linear", "12.35", "11.35 to 13.35", "45.48", "-33.13"),
        ("Transformer", "60.00", "59.00 to 61.00", "63.33", "-3.33"),
        ("Transformer with shared Q-K", "20.00", "19.00 to 21.00", "62.44", "-42.44"),
        ("mine", "1.00", "0.00 to 2.00", "-", "-"),
    )


def test_a_table_prints_as_markdown_csv_and_text(tmp_path):
    table = Table("Caption", ("Head", "a|b"), (("one", "1.00"), ("three", "10.00")))
    assert table.markdown().splitlines()[2:4] == ["| Head | a\\|b |", "| --- | ---: |"]
    assert table.plain().splitlines()[1:] == ["Head     a|b", "one     1.00", "three  10.00"]
    table.write_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "Head,a|b\none,1.00\nthree,10.00\n"


def test_every_run_with_epochs_gets_a_csv_of_its_history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = [{"epoch": 1, "loss": 0.5, "score": 10.25}, {"epoch": 2, "loss": 0.25, "score": 1e-05}]
    runs = [result("task", "trained", {}, history=history), result("task", "provided", {})]
    write_curves("task", runs, {"epoch": "epoch", "r_at_1": "score"})
    (path,) = (tmp_path / "reports/curves/task").iterdir()
    assert path.name == "trained.csv"
    assert list(csv.reader(path.open())) == [["epoch", "r_at_1"], ["1", "10.25"], ["2", "1e-05"]]


def test_an_overlay_paints_neither_void_nor_background():
    pixels = np.full((6, 6, 3), 0.5)
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5] = 1
    mask[0, 0] = 255
    painted = overlay(pixels, mask, ("background", "star"))
    assert np.allclose(painted[mask != 1], 0.5)
    assert np.allclose(painted[1, 1], class_colors(("background", "star"))["star"])  # the outline is opaque
    assert not np.allclose(painted[2, 2], 0.5)


def test_an_overlay_paints_class_0_if_it_is_not_background():
    painted = overlay(np.full((4, 4, 3), 0.5), np.zeros((4, 4), np.uint8), ("sky", "road"))
    assert not np.allclose(painted, 0.5)


@pytest.mark.parametrize("count", [2, 21, 60])
def test_no_two_classes_share_a_color(count):
    colors = class_colors(tuple(f"class {index}" for index in range(count)))
    assert len({tuple(np.round(color, 3)) for color in colors.values()}) == count + 1


def test_a_claim_gets_its_direction_and_whether_it_is_significant():
    claim = Claim("More is better", "more", "less", +1)
    draws = np.linspace(1.0, 5.0, 1001)
    assert claim.line("+3.00", 1.5, draws) == (
        "- *More is better* (original: +3.00): +1.50 here, 95 % CI +1.10 to +4.90: same direction."
    )
    assert claim.line("+3.00", -1.5, -draws).endswith("opposite direction.")
    assert claim.line("+3.00", 0.1, draws - 1.5).endswith("not significant (95 % CI includes 0).")


def test_only_claims_about_runs_with_the_originals_settings_are_checked():
    claims = [Claim("More is better", "more", "less", +1), Claim("Most is better still", "most", "more", +1)]
    runs = [result("task", name, {"score": score}) for name, score in (("less", 1.0), ("more", 3.0), ("most", 4.0))]
    originals = {"less": 10.0, "more": 12.5, "most": None}

    def draw_differences(first, second):
        return np.full(3, first.metrics["score"] - second.metrics["score"])

    (line,) = claim_lines(claims, runs, originals, "score", draw_differences)
    assert line == "- *More is better* (original: +2.50): +2.00 here, 95 % CI +2.00 to +2.00: same direction."
    assert claim_lines(claims[1:], runs, originals, "score", draw_differences) == []


def cell(name, bleu, **params):
    metrics = {"bleu": bleu, "bleu_low": bleu - 1, "bleu_high": bleu + 1, "images": 7}
    return result("captioning", name, metrics, {**params, "min_length": 10, "max_length": 30})


def test_tables_2_and_3_have_the_originals_layout():
    cells = [
        cell("mine", 9.0, type="top_p", p=0.9, temperature=1.0, prompt=""),
        cell("k5_t01", 20.004, type="top_k", k=5, temperature=0.1, prompt="a picture of"),
        cell("k50_t01", 20.001, type="top_k", k=50, temperature=0.1, prompt="a picture of"),
        cell("k1_t01", 3.0, type="top_k", k=1, temperature=0.3, prompt="a picture of"),
        cell("greedy", 12.0, type="greedy", prompt="a picture of"),
        cell("k50_t1", 2.0, type="top_k", k=50, temperature=1.0, prompt="a picture of"),
    ]
    second = captioning.table2(cells)
    assert second.columns[:5] == ("Type", "K", "Temperature (T)", "prompt", "BLEU Score (%)")
    assert [row[:5] + row[6:] for row in second.rows] == [
        ("Greedy search", "-", "-", '"a picture of"', "12.00", "27.90", "-15.90"),
        ("Top-K sampling", "50", "1.0", '"a picture of"', "2.00", "6.80", "-4.80"),
    ]
    third = captioning.table3(cells)
    assert [row[:5] + row[6:] for row in third.rows] == [
        ("Top-K sampling", "50", "0.1", '"a picture of"', "20.00*", "26.29", "-6.29"),
        ("Top-K sampling", "5", "0.1", '"a picture of"', "20.00*", "28.14", "-8.14"),
        ("Top-K sampling", "1", "0.3", '"a picture of"', "3.00", "-", "-"),  # another temperature than the original's
        ("Top-p sampling", "p = 0.9", "1.0", '""', "9.00", "-", "-"),
    ]


def recall(name, value, **params):
    metrics = {
        f"image_to_text_r_at_1{suffix}": value + shift for suffix, shift in (("", 0), ("_low", -1), ("_high", 1))
    }
    return result("retrieval", name, metrics, params)


def test_tables_4_and_5_have_the_originals_layout():
    rows = [
        recall("finetuned", 41.0, init="provided", lr=1e-5, weight_decay=0.0, temperature=0.1, epochs=3),
        recall("scratch", 40.0, init="scratch", lr=1e-3, weight_decay=1e-3, temperature=0.1, epochs=5),
        recall("provided", 39.0, init="provided"),
    ]
    fourth = retrieval.table4(rows)
    assert fourth.columns[:6] == ("Mode", "Learning Rate", "Weight Decay", "Temperature", "Epochs", "R@1 (%)")
    assert [row[:6] + row[7:] for row in fourth.rows] == [
        ("Evaluating with the provided checkpoint", "-", "-", "-", "-", "39.00", "53.89", "-14.89"),
        ("Training from scratch", "1e-3", "1e-3", "0.1", "5", "40.00", "43.96", "-3.96"),
        ("Finetuning checkpoint", "1e-5", "0", "0.1", "3", "41.00", "58.94", "-17.94"),
    ]
    changed = recall("scratch", 40.0, init="scratch", lr=3e-3, weight_decay=1e-3, temperature=0.1, epochs=5)
    (row,) = retrieval.table5([changed]).rows
    assert row[5:] == ("40.00*", "39.00 to 41.00", "-", "-")


def test_the_committed_params_are_the_originals_grid():
    """Every row of the original's tables is a run with the original's settings, and every claim is about such runs."""
    experiment = load_experiment(ROOT / "params.yaml")
    lengths = experiment.captioning.model_dump(exclude={"cells"})
    cells = [
        result("captioning", name, {}, lengths | params.model_dump(exclude_none=True))
        for name, params in experiment.captioning.cells.items()
    ]
    task = experiment.retrieval
    recipes = {
        "provided": {"init": "provided"},
        "scratch": {"init": "scratch", **task.recipe.model_dump()},
        "finetuned": {"init": "provided", **task.finetune.model_dump()},
        **{name: params.model_dump() for name, params in task.grid.items()},
    }
    rows = [result("retrieval", name, {}, params) for name, params in recipes.items()]
    heads = list(experiment.segmentation.heads)
    settings = experiment.classification.settings
    assert len(cells) == 11
    assert len(rows) == 12
    assert list(settings) == list(load_original()["classification"]["rows"])
    assert all(segmentation.original_miou(name) is not None for name in heads)
    assert all(captioning.original_bleu(cell) is not None for cell in cells)
    assert all(retrieval.original_recall(row) is not None for row in rows)
    assert all(classification.original_row(name, settings) for name in settings)
    names = {*heads, *settings, *(row.run.name for row in [*cells, *rows])}
    for module in (segmentation, captioning, retrieval, classification):
        assert all({claim.first, claim.second} <= names for claim in module.CLAIMS)


@pytest.mark.parametrize(
    ("value", "text"), [(1e-3, "1e-3"), (5e-4, "5e-4"), (0.05, "5e-2"), (0, "0"), (1.5e-5, "1.5e-5"), (None, "-")]
)
def test_learning_rates_are_printed_as_in_the_original(value, text):
    assert format_scientific(value) == text


@pytest.mark.parametrize(
    ("share", "words", "line"),
    [
        (
            "0.2222",
            "bus street",
            "\n22.2 % of the words in the captions are unknown to this BLIP, such as bus, street.\n",
        ),
        ("0.0000", "", None),
    ],
)
def test_the_page_names_words_that_blip_does_not_know(share, words, line):
    inputs = {"backbone": "blip", "unknown_share": share, "unknown_words": words}
    provided = result("retrieval", "provided", {"gallery": 7}, {"views": 4}, inputs=inputs)
    page = render("retrieval.md", run=provided.run, tables=[], claims=[])
    assert (line in page) if line else ("unknown" not in page)


def test_the_page_describes_images_of_different_sizes_and_a_source_without_masks():
    rows = (Row("a", "train", "a.jpg", height=20, width=30), Row("b", "val", "b.jpg", height=40, width=25))
    run = result("task", "name", {}, inputs={"backbone": "vit", "weights": "ab" * 32}).run
    page = build_page([Manifest(rows, "somewhere", ())], "folder", [Section("## Task\n")], False, [run])
    assert (
        """
- Source: `somewhere`; license: unknown
- Images: 1 train, 1 val; 30x20 to 25x40 pixels
- No masks
- Captions: none; labels: none

## Task

---

Packages: """
        in page
    )
    assert "tables are read from the run records" in page
    assert "Weights: vit `abababababab`." in page


def test_skipped_tasks_give_their_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark_skipped("x has no captions", RUNS / "captioning")  # one stage makes all runs
    mark_skipped("x has no labels", RUNS / "classification/base.json")  # one stage per run
    runs = {"captioning": ["greedy"], "classification": ["base"], "retrieval": ["scratch"]}
    assert skip_reasons(runs) == {"captioning": "x has no captions", "classification": "x has no labels"}


def finetuned(name, accuracy, folder, losses=(2.0, 1.5), **settings):
    """A setting's result whose first `accuracy` percent of ten images are right."""
    params = {"lr": 5e-4, "augment": False, "size": 80, "batch_size": 8, "accumulate": 1, "epochs": 5} | settings
    predicted = ["cat" if index < accuracy // 10 else "dog" for index in range(10)]
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({"label": ["cat"] * 10, "predicted": predicted}), path)
    metrics = {"accuracy": accuracy, "accuracy_low": accuracy - 1, "accuracy_high": accuracy + 1, "best_epoch": 4}
    metrics |= {"best_accuracy": accuracy + 2, "steps": 15, "train_loss": 1.5, "confusion": [[]] * 20}
    history = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, 1)]
    return result("classification", name, metrics, params, history=history, artifacts={"predictions": str(path)})


def test_the_classification_table_has_the_originals_words_next_to_our_numbers(tmp_path):
    settings = load_experiment(ROOT / "params.yaml").classification.settings
    results = [
        finetuned("augmented", 80.0, tmp_path, augment=True, size=88, accumulate=15),
        finetuned("base", 70.0, tmp_path),
    ]
    first, second = classification.table(results, settings).rows
    assert first[:5] == ("Adam, lr 1e-6, 5 epochs", "5e-4", "80x80", "8", "15")
    assert first[6:] == ("70.00", "69.00 to 71.00", "72.00 (4)", "89", "-19.00")
    assert second[2:4] == ("88x88, augmented", "120")
    assert second[-2:] == ("2 to 3 points above the 89", "-")
    changed = {**settings, "base": settings["base"].model_copy(update={"epochs": 9})}
    assert classification.table(results, changed).rows[0][0] == "base"
    assert classification.table(results, changed).rows[0][-2:] == ("-", "-")


def test_the_originals_claims_about_settings_are_checked_on_paired_images(tmp_path):
    settings = load_experiment(ROOT / "params.yaml").classification.settings
    results = [finetuned("base", 70.0, tmp_path), finetuned("high_lr", 0.0, tmp_path)]
    (line,) = classification.claims(results, settings, seed=0)
    assert "accuracy collapses* (original: -86): -70.00 here" in line
    assert line.endswith("same direction.")


def test_settings_that_were_still_learning_are_named(tmp_path):
    (setting,) = classification.still_learning([finetuned("base", 70.0, tmp_path)])
    assert setting == "`base`, training loss 1.50 after 15 steps of 8 images"


@pytest.mark.parametrize(
    "losses", [(2.0, 0.01), (2.0, 2.1), (3.2, 3.1), (1.5,)], ids=["trained", "rising", "no better than chance", "one"]
)
def test_settings_that_were_not_learning_at_the_end_are_not_named(tmp_path, losses):
    assert classification.still_learning([finetuned("base", 70.0, tmp_path, losses)]) == []


@pytest.mark.parametrize(
    ("low", "high", "comparison"),
    [
        (2.5, 3.5, "more than uniform attention"),
        (0.9, 1.1, "not significantly different from uniform attention"),
        (0.7, 0.9, "less than uniform attention"),
    ],
)
def test_attention_on_the_object_is_compared_with_uniform_attention_by_its_interval(low, high, comparison):
    metrics = {"x_mass": 30.0, "x_area": 10.0, "x_times_low": low, "x_times_high": high}
    assert attention.attention_verdict(metrics, "x") == f"30 % on 10 % of the area, {comparison}"


def test_skipped_attention_stages_give_their_reason_and_the_others_stay():
    rotary = result("position_similarity", "rotary", {}, inputs={"backbone": "rotary"})
    skipped = {"class_attention": "x has no class token", "caption_attention": "y has no captions"}
    manifest = Manifest((), "somewhere", ())
    experiment = load_experiment(ROOT / "params.yaml")
    section = attention.section(Inputs({"position_similarity": [rotary]}, skipped, manifest, manifest, experiment))
    assert "`rotary` has no learned position embeddings to show." in section.text
    assert "Left out: x has no class token." in section.text
    assert "Left out: y has no captions." in section.text
    assert not section.tables
    assert not section.metrics
