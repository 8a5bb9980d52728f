"""The report says what the runs say."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from stages.core.runs import Run
from stages.params.experiment import load_experiment
from stages.report import attention, captioning, classification, retrieval
from stages.report.claims import Claim
from stages.report.colors import class_colors
from stages.report.numbers import scientific
from stages.report.original import load_original
from stages.report.overlays import overlay
from stages.report.results import Result
from stages.report.segmentation import CLAIMS, Head, head_label, table
from stages.report.tables import Table


def head(name, miou):
    metrics = {"miou": miou, "miou_low": miou - 1, "miou_high": miou + 1}
    return Head(head_label(name), Run("segmentation", name, f"train_head@{name}", {}, metrics), metrics)


def test_table_1_has_the_reports_rows_in_its_order_and_two_decimals():
    heads = [head("mine", 1.0), head("transformer_shared_qk", 20.004), head("linear", 12.345), head("transformer", 60)]
    made = table(heads)
    assert made.columns[:2] == ("Head", "Validation mIoU")
    assert made.rows == (
        ("Linear", "12.35", "11.35 to 13.35", "45.48", "-33.13"),
        ("Transformer", "60.00", "59.00 to 61.00", "63.33", "-3.33"),
        ("Transformer with shared Q-K", "20.00", "19.00 to 21.00", "62.44", "-42.44"),
        ("mine", "1.00", "0.00 to 2.00", "-", "-"),
    )


def test_table_as_markdown_csv_and_text(tmp_path):
    made = Table("Said", ("Head", "a|b"), (("one", "1.00"), ("three", "10.00")))
    assert made.markdown().splitlines()[2:4] == ["| Head | a\\|b |", "| --- | ---: |"]
    assert made.plain().splitlines()[1:] == ["Head     a|b", "one     1.00", "three  10.00"]
    made.write_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "Head,a|b\none,1.00\nthree,10.00\n"


def test_overlay_paints_neither_void_nor_background():
    pixels = np.full((6, 6, 3), 0.5)
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5], mask[0, 0] = 1, 255
    painted = overlay(pixels, mask, ("background", "star"))
    assert np.allclose(painted[mask != 1], 0.5)
    assert np.allclose(painted[1, 1], class_colors(("background", "star"))["star"])  # the region's line
    assert not np.allclose(painted[2, 2], 0.5)


def test_overlay_paints_class_0_where_it_is_no_background():
    painted = overlay(np.full((4, 4, 3), 0.5), np.zeros((4, 4), np.uint8), ("sky", "road"))
    assert not np.allclose(painted, 0.5)


@pytest.mark.parametrize("count", [2, 21, 60])
def test_no_two_classes_share_a_color(count):
    colors = class_colors(tuple(f"class {index}" for index in range(count)))
    assert len({tuple(np.round(color, 3)) for color in colors.values()}) == count + 1


def test_claims_are_about_heads_that_the_report_has():
    assert all(head(name, 1.0).reported is not None for one in CLAIMS for name in (one.first, one.second))


def test_a_claim_tells_direction_and_whether_the_images_could_explain_it():
    claim = Claim("More is better", "more", "less", +1)
    draws = np.linspace(1.0, 5.0, 1001)
    assert claim.line(3.0, 1.5, draws) == (
        "- *More is better* (+3.00 in the report): +1.50 here, 95 % interval +1.10 to +4.90: the same direction."
    )
    assert claim.line(3.0, -1.5, -draws).endswith("the other direction.")
    assert claim.line(3.0, 0.1, draws - 1.5).endswith("no difference that the images could not explain.")


def cell(name, bleu, **asked):
    numbers = {"bleu": bleu, "bleu_low": bleu - 1, "bleu_high": bleu + 1, "images": 7}
    asked |= {"min_length": 10, "max_length": 30}
    return Result(Run("captioning", name, "caption", asked, numbers), numbers, None)


def test_tables_2_and_3_are_laid_out_as_in_the_report():
    cells = [
        cell("mine", 9.0, type="top_p", p=0.9, temperature=1.0, prompt=""),
        cell("k5_t01", 20.004, type="top_k", k=5, temperature=0.1, prompt="a picture of"),
        cell("k50_t01", 20.001, type="top_k", k=50, temperature=0.1, prompt="a picture of"),
        cell("k1_t01", 3.0, type="top_k", k=1, temperature=0.3, prompt="a picture of"),
        cell("greedy", 12.0, type="greedy", prompt="a picture of"),
        cell("k50_t1", 2.0, type="top_k", k=50, temperature=1.0, prompt="a picture of"),
    ]
    second = captioning.table(captioning.TABLE2, "Table 2", cells, False)
    assert second.columns[:5] == ("Type", "K", "Temperature (T)", "prompt", "BLEU Score (%)")
    assert [row[:5] + row[6:] for row in second.rows] == [
        ("Greedy search", "-", "-", '"a picture of"', "12.00", "27.90", "-15.90"),
        ("Top-K sampling", "50", "1.0", '"a picture of"', "2.00", "6.80", "-4.80"),
    ]
    third = captioning.table(captioning.TABLE3, "Table 3", cells, True)
    assert [row[:5] + row[6:] for row in third.rows] == [
        ("Top-K sampling", "50", "0.1", '"a picture of"', "20.00*", "26.29", "-6.29"),
        ("Top-K sampling", "5", "0.1", '"a picture of"', "20.00*", "28.14", "-8.14"),
        ("Top-K sampling", "1", "0.3", '"a picture of"', "3.00", "-", "-"),  # not set as in the report
        ("Top-p sampling", "p = 0.9", "1.0", '""', "9.00", "-", "-"),
    ]


def row(name, recall, **asked):
    numbers = {"image_to_text_r_at_1": recall}
    numbers |= {"image_to_text_r_at_1_low": recall - 1, "image_to_text_r_at_1_high": recall + 1}
    return Result(Run("retrieval", name, "train_retrieval", asked, numbers), numbers, None)


def test_tables_4_and_5_are_laid_out_as_in_the_report():
    rows = [
        row("finetuned", 41.0, init="provided", lr=1e-5, weight_decay=0.0, temperature=0.1, epochs=3),
        row("scratch", 40.0, init="scratch", lr=1e-3, weight_decay=1e-3, temperature=0.1, epochs=5),
        row("provided", 39.0, init="provided"),
    ]
    made = retrieval.table(retrieval.TABLE4, "Table 4", rows, False)
    assert made.columns[:6] == ("Mode", "Learning Rate", "Weight Decay", "Temperature", "Epochs", "R@1 (%)")
    assert [one[:6] + one[7:] for one in made.rows] == [
        ("Evaluating with the provided checkpoint", "-", "-", "-", "-", "39.00", "53.89", "-14.89"),
        ("Training from scratch", "1e-3", "1e-3", "0.1", "5", "40.00", "43.96", "-3.96"),
        ("Finetuning checkpoint", "1e-5", "0", "0.1", "3", "41.00", "58.94", "-17.94"),
    ]
    changed = row("scratch", 40.0, init="scratch", lr=3e-3, weight_decay=1e-3, temperature=0.1, epochs=5)
    (only,) = retrieval.table(retrieval.TABLE4, "Table 4", [changed], True).rows
    assert only[5:] == ("40.00*", "39.00 to 41.00", "-", "-")


def test_the_committed_params_are_the_reports_grid():
    """Every row of Tables 2 to 5 is asked for, as the report set it."""
    experiment = load_experiment(ROOT / "params.yaml")
    lengths = experiment.captioning.model_dump(exclude={"cells"})
    cells = [
        Result(Run("captioning", name, "", lengths | one.model_dump(exclude_none=True), {}), {}, None)
        for name, one in experiment.captioning.cells.items()
    ]
    task = experiment.retrieval
    asked = {
        "provided": {"init": "provided"},
        "scratch": {"init": "scratch", **task.recipe.model_dump()},
        "finetuned": {"init": "provided", **task.finetune.model_dump()},
        **{name: one.model_dump() for name, one in task.grid.items()},
    }
    rows = [Result(Run("retrieval", name, "", one, {}), {}, None) for name, one in asked.items()]
    assert len(cells) == 11
    assert len(rows) == 12
    assert all(captioning.reported(one) is not None for one in cells)
    assert all(retrieval.reported(one) is not None for one in rows)
    claims = [*captioning.CLAIMS, *retrieval.CLAIMS]
    names = {one.run.name for one in [*cells, *rows]}
    assert all({claim.first, claim.second} <= names for claim in claims)
    settings = experiment.classification.settings
    assert list(settings) == list(load_original()["classification"]["rows"])
    assert all(classification.reported(name, settings) for name in settings)
    assert all({claim.first, claim.second} <= set(settings) for claim in classification.CLAIMS)


@pytest.mark.parametrize(
    ("value", "printed"), [(1e-3, "1e-3"), (5e-4, "5e-4"), (0.05, "5e-2"), (0, "0"), (1.5e-5, "1.5e-5"), (None, "-")]
)
def test_learning_rates_are_printed_as_in_the_report(value, printed):
    assert scientific(value) == printed


def test_the_page_tells_of_words_that_blip_does_not_know():
    run = Run("retrieval", "provided", "", {}, {}, inputs={"unknown_share": "0.2222", "unknown_words": "bus street"})
    (line, _) = retrieval._unknown(Result(run, {}, None))
    assert line == "22.2% of the captions' words are unknown to this BLIP, such as bus, street."
    known = Run("retrieval", "provided", "", {}, {}, inputs={"unknown_share": "0.0000", "unknown_words": ""})
    assert retrieval._unknown(Result(known, {}, None)) == []


def finetuned(name, accuracy, folder, **settings):
    """A setting's result whose first `accuracy` percent of ten images are right."""
    asked = {"lr": 5e-4, "augment": False, "size": 80, "batch_size": 8, "accumulate": 1, "epochs": 5} | settings
    predicted = ["cat" if index < accuracy // 10 else "dog" for index in range(10)]
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({"label": ["cat"] * 10, "predicted": predicted}), path)
    metrics = {"accuracy": accuracy, "accuracy_low": accuracy - 1, "accuracy_high": accuracy + 1, "best_epoch": 4}
    metrics |= {"best_accuracy": accuracy + 2, "steps": 15, "train_loss": 1.5, "confusion": [[]] * 20}
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5}]
    run = Run("classification", name, "", asked, metrics, history, artifacts={"predictions": str(path)})
    return Result(run, metrics, None)


def test_the_classification_table_is_the_reports_with_its_words_beside_ours(tmp_path):
    settings = load_experiment(ROOT / "params.yaml").classification.settings
    results = [finetuned("augmented", 80.0, tmp_path, augment=True, size=88), finetuned("base", 70.0, tmp_path)]
    first, second = classification.table(results, settings).rows
    assert first[:5] == ("Adam, lr 1e-6, 5 epochs", "5e-4", "80x80", "8", "15")
    assert first[6:] == ("70.00", "69.00 to 71.00", "72.00 (4)", "89", "-19.00")
    assert second[2] == "88x88, augmented"
    assert second[-2:] == ("2 to 3 points above the 89", "-")
    changed = {**settings, "base": settings["base"].model_copy(update={"epochs": 9})}
    assert classification.table(results, changed).rows[0][0] == "base"
    assert classification.table(results, changed).rows[0][-2:] == ("-", "-")


def test_what_the_report_says_of_settings_is_held_against_paired_images(tmp_path):
    settings = load_experiment(ROOT / "params.yaml").classification.settings
    results = [finetuned("base", 70.0, tmp_path), finetuned("high_lr", 0.0, tmp_path)]
    (line,) = classification.claims(results, settings, seed=0)
    assert "accuracy collapses* (-86 in the report): -70.00 here" in line
    assert line.endswith("the same direction.")
    assert classification.why(results[:1]) == [
        "Still learning when they ended: `base`, training loss 1.50 after 15 steps of 8 images.",
        "",
    ]
    for loss in (0.01, 2.1, 3.1):  # learned; rising; no better than chance among 20
        results[0].run.history[:] = [{"epoch": 1, "train_loss": max(2.0, loss)}, {"epoch": 2, "train_loss": loss}]
        results[0].run.history[0]["train_loss"] = 2.0 if loss < 3 else 3.2
        assert classification.why(results[:1]) == []


def test_shares_in_words_are_judged_by_their_interval():
    numbers = {"x_mass": 30.0, "x_area": 10.0, "x_times_low": 2.5, "x_times_high": 3.5}
    assert attention.verdict(numbers, "x") == "30 % on 10 % of the area, more than an even spread"
    numbers |= {"x_times_low": 0.9, "x_times_high": 1.1}
    assert attention.verdict(numbers, "x").endswith("not to be told from an even spread")
    numbers |= {"x_times_low": 0.7, "x_times_high": 0.9}
    assert attention.verdict(numbers, "x").endswith("less than an even spread")


def test_attention_that_is_absent_is_told_and_nothing_else_is_lost():
    run = Run("position_similarity", "rotary", "", {}, {}, inputs={"backbone": "rotary"})
    absent = {"class_attention": "x has no class token", "caption_attention": "y has no captions"}
    made = attention.section({"position_similarity": [Result(run, {}, None)]}, absent)
    page = "\n".join(made.lines)
    assert "`rotary` has no learned position embeddings to show." in page
    assert "Left out: x has no class token." in page and "Left out: y has no captions." in page
    assert not made.tables and not made.metrics
