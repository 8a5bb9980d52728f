"""Every conclusion of the originals gets a verdict, with the reason where it is not checked."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from stages.captioning.bleu import bleu, count_ngrams
from stages.core.bootstrap import DRAWS
from stages.core.runs import Run
from stages.data.manifest import Manifest, Row
from stages.params.experiment import load_experiment
from stages.report.claims import Evaluator, Verdict, evaluate_claims
from stages.report.metrics import task_metrics
from stages.report.original_settings import changed_settings, original_number
from stages.report.results import Result
from stages.report.section import Inputs, render
from stages.report.significance import Metric
from stages.report.statements import (
    HIGHER,
    LOWER,
    NOT_HIGHER,
    STATEMENTS,
    BestRow,
    Comparison,
    EffectComparison,
    EpochAgainst,
    MeasuredAgainst,
    NotMeasured,
    OriginalLevel,
    Statement,
)

EXPERIMENT = load_experiment(ROOT / "params.yaml")
KEYS = {
    "segmentation": "miou",
    "captioning": "bleu",
    "retrieval": "image_to_text_r_at_1",
    "retrieval_grid": "image_to_text_r_at_1",
    "classification": "accuracy",
}


def build_result(task, name, metrics, params=None, **fields):
    run = Run(task, name, task, params or {}, metrics, **fields)
    return Result((run,), pd.DataFrame([metrics]), (None,))


def params_of_runs():
    """The params of all runs that params.yaml declares, by task and name, as their records hold them."""
    segmentation = EXPERIMENT.segmentation.model_dump(exclude={"heads", "seeds"})
    captioning = EXPERIMENT.captioning.model_dump(exclude={"cells", "seeds"})
    params = {}
    for name, head in EXPERIMENT.segmentation.heads.items():
        params["segmentation", name] = {**segmentation, "kind": head.kind, **head.options}
    for name, cell in EXPERIMENT.captioning.cells.items():
        params["captioning", name] = {**captioning, **cell.model_dump(exclude_none=True)}
    for name, row in EXPERIMENT.retrieval.table4.items():
        params["retrieval", name] = row.model_dump() if row else {"init": "provided"}
    for name, row in EXPERIMENT.retrieval.grid.items():
        params["retrieval_grid", name] = row.model_dump()
    for name, setting in EXPERIMENT.classification.settings.items():
        params["classification", name] = setting.resolved(EXPERIMENT.active.classifier).model_dump()
    return params


def build_inputs(scores, *, changed=None, skipped=None):
    """Inputs with the rows `scores`, by `task/name`; `changed` are other params than the original's."""
    results = {}
    declared = params_of_runs()
    for row, score in scores.items():
        task, _, name = row.partition("/")
        params = {"profile": "embedded", **declared[task, name], **(changed or {}).get(row, {})}
        metrics = {KEYS[task]: score, f"{KEYS[task]}_low": score - 1, f"{KEYS[task]}_high": score + 1}
        results.setdefault(task, []).append(build_result(task, name, metrics, params))
    nothing = Manifest((), "data/none", ())
    return Inputs(results, skipped or {}, nothing, nothing, EXPERIMENT)


def build_metrics(noise=0.1):
    """Metrics whose draws have a standard deviation of `noise`, different for every run."""

    def draw_run(run):
        rng = np.random.default_rng(len(run.task + run.name))
        return run.metrics[KEYS[run.task]] + rng.normal(0, noise, DRAWS)

    return {task: Metric(key, f"{task} score", draw_run, seed=1) for task, key in KEYS.items()}


def evaluate(claim, inputs, metrics=None):
    evaluator = Evaluator(inputs, metrics or build_metrics())
    return evaluator.evaluate(Statement("section", "Sentence.", (claim,)), claim)


TRANSFORMER_IS_BETTER = Comparison("segmentation/transformer", "segmentation/linear", HIGHER)


@pytest.mark.parametrize(
    ("transformer", "outcome"), [(60.0, "holds"), (40.0, "does not hold"), (50.1, "not significant here")]
)
def test_a_comparison_holds_if_its_direction_is_the_originals_and_significant(transformer, outcome):
    inputs = build_inputs({"segmentation/linear": 50.0, "segmentation/transformer": transformer})
    verdict = evaluate(TRANSFORMER_IS_BETTER, inputs)
    assert verdict.outcome == outcome
    assert verdict.here == f"{transformer - 50:+.2f}"
    assert verdict.original == "+17.85"
    assert verdict.compared == "`transformer` > `linear`"


def test_rows_with_other_settings_are_not_compared():
    scores = {"segmentation/linear": 50.0, "segmentation/transformer": 60.0}
    inputs = build_inputs(scores, changed={"segmentation/linear": {"epochs": 3}})
    verdict = evaluate(TRANSFORMER_IS_BETTER, inputs)
    assert (verdict.outcome, verdict.here, verdict.interval, verdict.original) == ("not checked", "-", "-", None)
    assert verdict.explanation == "`linear` has other settings than the original's: epochs = 3 instead of 15"


def test_missing_and_skipped_rows_are_not_compared():
    verdict = evaluate(TRANSFORMER_IS_BETTER, build_inputs({"segmentation/linear": 50.0}))
    assert (verdict.outcome, verdict.explanation) == ("not checked", "`transformer` is not among the runs")
    verdict = evaluate(TRANSFORMER_IS_BETTER, build_inputs({}, skipped={"segmentation": "no masks"}))
    assert (verdict.outcome, verdict.explanation) == ("not checked", "left out: no masks")


def test_no_sentence_disappears():
    verdicts = evaluate_claims(build_inputs({}), {})
    assert {verdict.sentence for verdict in verdicts} == {statement.sentence for statement in STATEMENTS}
    assert {verdict.outcome for verdict in verdicts} == {"not checked"}
    assert all(verdict.explanation for verdict in verdicts)


def test_the_rows_of_all_statements_are_in_the_params_with_the_originals_settings():
    declared = params_of_runs()
    for statement in STATEMENTS:
        for claim in statement.claims:
            match claim:
                case Comparison(left, right):
                    rows = [row for row in (left, right) if isinstance(row, str)]
                case EffectComparison(small=small, large=large):
                    rows = [*small, *large]
                case NotMeasured():
                    rows = []
                case MeasuredAgainst(row=row) | OriginalLevel(row=row) | EpochAgainst(row=row):
                    rows = [row] if row.partition("/")[0] in KEYS else []  # attention runs are not in the params
            for row in rows:
                task, _, name = row.partition("/")
                assert changed_settings(build_result(task, name, {}, declared[task, name]), EXPERIMENT) == []


def test_words_of_the_original_are_no_numbers():
    assert original_number("segmentation", "linear") == 45.48
    assert original_number("classification", "accumulated") == "over 94"
    assert original_number("segmentation", "convolutional_5x5") is None
    scores = {"classification/base": 60.0, "classification/augmented": 70.0}
    claim = Comparison("classification/augmented", "classification/base", HIGHER)
    assert evaluate(claim, build_inputs(scores)).original is None
    claim = Comparison("classification/augmented", "classification/base", HIGHER, original="+2 to +3")
    assert evaluate(claim, build_inputs(scores)).original == "+2 to +3"


@pytest.mark.parametrize(
    ("small", "outcome"), [(51.0, "holds"), (49.0, "holds"), (80.0, "does not hold"), (60.1, "not significant here")]
)
def test_an_effect_is_compared_by_its_size(small, outcome):
    claim = EffectComparison(
        "K", ("captioning/k50_t01", "captioning/k5_t01"), "temperature", ("captioning/k50_t1", "captioning/k50_t01")
    )
    scores = {"captioning/k50_t01": 50.0, "captioning/k5_t01": small, "captioning/k50_t1": 40.0}
    verdict = evaluate(claim, build_inputs(scores))
    assert verdict.outcome == outcome
    assert verdict.here == f"{abs(small - 50) - 10:+.2f}"
    assert verdict.original == "-17.64"  # 28.14 - 26.29 against 26.29 - 6.8
    if outcome != "holds":
        assert verdict.explanation == f"The changes are {small - 50:+.2f} (K) and +10.00 (temperature)."


def test_the_best_row_is_ours_here_and_the_originals_there():
    best = BestRow("best row from scratch", ("retrieval", "retrieval_grid"), lambda row: "scratch" in row.name)
    scores = {
        "retrieval/provided": 60.0,
        "retrieval/scratch": 50.0,
        "retrieval_grid/scratch_lr1e-3_wd5e-2": 45.0,  # the original's best: 48.31
        "retrieval_grid/scratch_lr1e-4_wd1e-3": 99.0,
    }
    changed = {"retrieval_grid/scratch_lr1e-4_wd1e-3": {"batch_size": 64}}
    verdict = evaluate(Comparison("retrieval/provided", best, HIGHER), build_inputs(scores, changed=changed))
    assert verdict.compared == "`provided` > best row from scratch, `scratch`"
    assert (verdict.outcome, verdict.here, verdict.original) == ("holds", "+10.00", "+5.58")
    nothing = evaluate(Comparison("retrieval/provided", best, HIGHER), build_inputs({"retrieval/provided": 1.0}))
    assert nothing.outcome == "not checked"


def attention_inputs(**metrics):
    result = build_result("caption_attention", "greedy", metrics, {"layer": -1, "head": "mean"})
    nothing = Manifest((), "data/none", ())
    return Inputs({"caption_attention": [result]}, {}, nothing, nothing, EXPERIMENT)


def test_a_recorded_interval_is_compared_with_its_reference():
    claim = MeasuredAgainst("caption_attention", "times", "Times uniform", 1.0, "uniform attention", HIGHER)
    verdict = evaluate(claim, attention_inputs(times=1.5, times_low=1.2, times_high=1.75))
    assert (verdict.outcome, verdict.here, verdict.interval) == ("holds", "1.50 (against 1.00)", "1.20 to 1.75")
    assert verdict.compared == "`greedy` > uniform attention"
    assert evaluate(claim, attention_inputs(times=1.5, times_low=0.9, times_high=2)).outcome == "not significant here"
    assert evaluate(claim, attention_inputs(times=0.5, times_low=0.4, times_high=0.6)).outcome == "does not hold"
    verdict = evaluate(claim, attention_inputs(images=3))
    assert (verdict.outcome, verdict.explanation) == (
        "not checked",
        "`greedy` of `caption_attention` has measured no `times`",
    )


def test_a_recorded_difference_has_its_own_interval():
    claim = MeasuredAgainst("caption_attention", "mass", "Mass", "others", "others", LOWER, difference="more")
    verdict = evaluate(claim, attention_inputs(mass=10.0, others=40.0, more_low=-32.0, more_high=-28.5))
    assert (verdict.outcome, verdict.here, verdict.interval) == ("holds", "-30.00", "-32.00 to -28.50")


def test_a_property_of_the_weights_has_no_interval():
    claim = MeasuredAgainst("caption_attention", "neighbors", "Neighbors", "by_chance", "chance", HIGHER)
    verdict = evaluate(claim, attention_inputs(neighbors=36.0, by_chance=6.0))
    assert (verdict.outcome, verdict.interval) == ("holds", "-")
    assert evaluate(claim, attention_inputs(neighbors=6.0, by_chance=6.0)).outcome == "does not hold"


def test_a_level_of_the_original_is_compared_on_its_own_images_only():
    claim = OriginalLevel("classification/base")
    assert evaluate(claim, build_inputs({"classification/base": 95.0})).outcome == "not checked"
    paper = {"classification/base": {"profile": "paper"}}
    for accuracy, outcome in ((95.0, "holds"), (88.5, "holds"), (87.0, "does not hold")):  # intervals are +-1
        inputs = build_inputs({"classification/base": accuracy}, changed=paper)
        inputs.results["classification"][0].run.inputs["backbone"] = "vit_base_patch16_224.augreg_in1k@revision"
        verdict = evaluate(claim, inputs)
        assert (verdict.outcome, verdict.here) == (outcome, f"{accuracy:.2f} (against 89.00)")


@pytest.mark.parametrize(("convolutional", "outcome"), [(40.0, "holds"), (50.1, "holds"), (60.0, "does not hold")])
def test_no_better_is_refuted_by_a_significantly_better_row_only(convolutional, outcome):
    claim = Comparison("segmentation/convolutional", "segmentation/linear", NOT_HIGHER)
    inputs = build_inputs({"segmentation/linear": 50.0, "segmentation/convolutional": convolutional})
    assert evaluate(claim, inputs).outcome == outcome


@pytest.mark.parametrize(
    ("best", "last", "rises", "collapses"),
    [
        (5.0, 5.0, "not significant here", "not significant here"),  # chance is 5 %
        (60.0, 4.0, "holds", "holds"),
        (60.0, 60.0, "holds", "not significant here"),
    ],
)
def test_a_training_that_never_rose_has_not_collapsed(best, last, rises, collapses):
    inputs = build_inputs({"classification/high_lr": last})
    (row,) = inputs.results["classification"]
    row.frame["best_accuracy"], row.frame["images"] = best, 300
    row.run.details["confusion"] = [[0]] * 20
    row.run.history.append({"accuracy": last})
    (statement,) = [statement for statement in STATEMENTS if "collapses" in statement.sentence]
    rise, collapse, _ = statement.claims
    assert (evaluate(rise, inputs).outcome, evaluate(collapse, inputs).outcome) == (rises, collapses)
    # Newcombe's and Wald's intervals of 4 % and 60 % of 300 images differ by less than half a point.
    if last == 4.0:
        low, high = (float(number) for number in evaluate(collapse, inputs).interval.split(" to "))
        assert (low, high) == pytest.approx((-61.97, -50.03), abs=0.01)  # -56 +- 1.96 sqrt((.24 + .0384) / 300)


def test_every_comparison_that_fails_says_what_was_measured():
    inputs = build_inputs({f"{task}/{name}": 50.0 for task, name in params_of_runs()})
    for results in inputs.results.values():
        for row in results:
            for key in ("train_loss", "words", "steps", "best_accuracy", "images"):
                row.frame[key] = 3.0
            row.run.details["confusion"] = [[0]] * 2
            row.run.history.extend([{"train_loss": 1.0, "accuracy": 1.0, "image_to_text_r_at_1": 1.0}] * 2)
    verdicts = evaluate_claims(inputs, build_metrics())
    failing = [verdict for verdict in verdicts if verdict.outcome not in ("holds", "not checked")]
    assert len(failing) > 10
    assert all(verdict.explanation and verdict.explanation.endswith(".") for verdict in failing)


def test_an_explanation_is_given_only_where_a_comparison_does_not_hold():
    claim = Comparison(
        "segmentation/transformer", "segmentation/linear", HIGHER, explain=lambda *rows: f"{len(rows)} losses."
    )
    holds, fails = (
        evaluate(claim, build_inputs({"segmentation/linear": 50.0, "segmentation/transformer": score}))
        for score in (60.0, 40.0)
    )
    assert holds.explanation is None
    assert fails.explanation == "2 losses. segmentation score is 40.00 (`transformer`) and 50.00 (`linear`)."


def test_the_spread_over_seeds_explains_a_difference_that_is_not_significant():
    inputs = build_inputs({"segmentation/linear": 50.0, "segmentation/transformer": 50.0})
    (linear, single) = inputs.results["segmentation"]
    runs = tuple(Run(**{**vars(single.run), "seed": seed}) for seed in (1, 2))
    several = Result(runs, pd.DataFrame({"miou": [49.0, 51.0]}), (None, None))
    inputs.results["segmentation"] = [linear, several]
    verdict = evaluate(TRANSFORMER_IS_BETTER, inputs)
    assert verdict.outcome == "not significant here"
    values = "50.00 ± 1.41 over 2 seeds (`transformer`) and 50.00 (`linear`)"
    assert verdict.explanation == f"segmentation score is {values}."


def test_claims_render_as_tables_with_equal_columns():
    inputs = build_inputs({"segmentation/linear": 50.0, "segmentation/transformer": 60.0})
    verdicts = [*evaluate_claims(inputs, build_metrics()), Verdict("attention", "A|B.", "`a` < `b`", "not checked")]
    text = render("claims.md", verdicts=verdicts)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(verdicts) + 2 * 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "A\\|B." in text
    assert f"Holds: 1, does not hold: 0, not significant here: 0, not checked: {len(verdicts) - 1}." in text
    for statement in STATEMENTS:
        assert text.count(f"| {statement.sentence} |") == 1  # before its first comparison only
    assert "| `transformer` &gt; `linear` | segmentation score | +10.00 |" in text
    fails = evaluate(
        TRANSFORMER_IS_BETTER, build_inputs({"segmentation/linear": 60.0, "segmentation/transformer": 50.0})
    )
    worse = build_inputs({"segmentation/linear": 60.0, "segmentation/transformer": 50.0})
    fails = evaluate(TRANSFORMER_IS_BETTER, worse)
    assert "| +17.85 | **does not hold** |" in render("claims.md", verdicts=[fails])


def write_rows(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"predictions": str(path)}


def test_the_metrics_bootstrap_the_predictions_of_every_task(tmp_path):
    rng = np.random.default_rng(0)
    rows, masks = [], []
    for index in range(40):
        truth = rng.integers(0, 3, (4, 5), dtype=np.uint8)
        predicted = np.where(rng.random((4, 5)) < 0.7, truth, 0).astype(np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(truth).save(path)
        rows.append(Row(f"image{index}", "val", "unused", str(path)))
        masks.append({"image_id": f"image{index}", "height": 4, "width": 5, "mask": predicted.tobytes()})
    captions = [
        {
            "cell": cell,
            "seed": seed,
            "image_id": row.image_id,
            "caption": text,
            "reference": f"a red star on the left of a {row.image_id}",
        }
        for cell, seed, text in (
            ("greedy", None, "a red star on the left"),
            ("k50_t1", 1, "a red star on the right"),
            ("k50_t1", 2, "nothing in common"),
        )
        for row in rows
    ]
    ranks = [{"image_to_text_rank": index % 4 + 1} for index in range(40)]
    labels = [{"label": "cat", "predicted": "cat" if index % 2 else "dog"} for index in range(40)]
    captions_file = write_rows(tmp_path / "captions.parquet", captions)
    runs = {
        "segmentation": Run("segmentation", "a", "s", {}, {}, artifacts=write_rows(tmp_path / "masks.parquet", masks)),
        "captioning": Run("captioning", "k50_t1", "s", {}, {}, artifacts=captions_file, seed=1),
        "retrieval": Run("retrieval", "a", "s", {}, {}, artifacts=write_rows(tmp_path / "ranks.parquet", ranks)),
        "classification": Run("classification", "a", "s", {}, {}, artifacts=write_rows(tmp_path / "l.parquet", labels)),
    }
    inputs = Inputs(
        {task: [Result((run,), pd.DataFrame(), (None,))] for task, run in runs.items()},
        {"retrieval_grid": "skipped"},
        Manifest(tuple(rows), "data/none", ("background", "star", "heart")),
        Manifest((), "data/none", ()),
        EXPERIMENT,
    )
    metrics = task_metrics(inputs)
    assert list(metrics) == list(runs)
    draws = {task: metrics[task].draw_run(run) for task, run in runs.items()}
    assert {task: values.shape for task, values in draws.items()} == dict.fromkeys(runs, (DRAWS,))
    assert 40 < draws["segmentation"].mean() < 75
    references = [[row["reference"]] for row in captions[:40]]
    score = bleu(count_ngrams(["a red star on the right"] * 40, references))
    assert np.isclose(draws["captioning"].mean(), score, rtol=0.01)
    unrelated = Run("captioning", "k50_t1", "s", {}, {}, artifacts=captions_file, seed=2)
    assert (metrics["captioning"].draw_run(unrelated) == 0).all()
    greedy = Run("captioning", "greedy", "s", {}, {}, artifacts=captions_file)
    assert metrics["captioning"].draw_run(greedy).mean() > score
    assert np.isclose(draws["retrieval"].mean(), 25, atol=1)
    assert np.isclose(draws["classification"].mean(), 50, atol=1)
