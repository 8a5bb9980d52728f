"""The report prints what the runs hold, in the original's tables, and next to the original's numbers."""

import csv
import io
import json
import re
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from jinja2 import Environment
from markdown_it import MarkdownIt
from sample_report import metric

from stages.core.runs import RUNS, Run, write_run
from stages.core.skipped import mark_skipped
from stages.data.manifest import Manifest, Row
from stages.params.experiment import load_experiment
from stages.report import attention, captioning, classification, comparison, retrieval, segmentation
from stages.report.__main__ import expected_runs, skip_reasons
from stages.report.comparison import original_value
from stages.report.markdown import Markdown, code, escape, prose
from stages.report.numbers import format_scientific, star_highest
from stages.report.original import load_original
from stages.report.page import SMOKE_RUN_IMAGES, build_page
from stages.report.predictions import read_captions
from stages.report.results import Result, load_results
from stages.report.section import TEMPLATES, Inputs, Section, link, render
from stages.report.tables import Table, escape_latex
from stages.segmentation.class_colors import class_colors
from stages.segmentation.overlay import overlay
from stages.tracking import registration

EXPERIMENT = load_experiment(ROOT / "params.yaml")
ASSIGNMENT = ROOT.parent / "shared/assignment/tables.json"
NASTY = "<script>alert('x')</script> | `a` \"b\" *c* [d](e)\n# f $g$ &amp; _h_"


def result(task, name, *metrics, params=None, seeds=None, **fields):
    """A result with one run for each of `metrics`, which have no seeds unless given."""
    params = {"profile": "embedded"} | (params or {})
    seeds = seeds or [None] * len(metrics)
    runs = [
        Run(task, name, task, params, values, seed=seed, **fields) for values, seed in zip(metrics, seeds, strict=True)
    ]
    frame = pd.DataFrame([run.metrics for run in runs], index=[run.key for run in runs], dtype=float)
    return Result(tuple(runs), frame, (None,) * len(runs))


def text(table):
    """A table's cells, header included."""
    return [tuple(table.frame.columns), *table.frame.itertuples(index=False, name=None)]


# ---- The original's tables ----


def head(name, *mious):
    settings = EXPERIMENT.segmentation.model_dump(exclude={"heads", "seeds"})
    kind = EXPERIMENT.segmentation.heads.get(name)
    options = kind.model_dump() if kind else {"kind": "mine"}
    metrics = [{"miou": miou, "best_miou": miou + 1, "best_epoch": 3, "train_loss": 0.25} for miou in mious]
    seeds = list(range(1, len(mious) + 1))
    return result("segmentation", name, *metrics, params={**settings, **options}, seeds=seeds)


def cell(name, *bleus, **changes):
    cells = EXPERIMENT.captioning.cells
    params = cells[name].model_dump(exclude_none=True) if name in cells else {}
    lengths = EXPERIMENT.captioning.model_dump(exclude={"cells", "seeds"})
    metrics = [{"bleu": bleu} for bleu in bleus]
    seeds = None if params.get("type") == "greedy" else list(range(1, len(bleus) + 1))
    return result("captioning", name, *metrics, params=lengths | params | changes, seeds=seeds)


def recall(task, name, *values, **changes):
    rows = {**EXPERIMENT.retrieval.table4, **EXPERIMENT.retrieval.grid}
    row = rows.get(name)
    params = row.model_dump() if row else {"init": "provided"}
    keys = ("image_to_text_r_at_1", *retrieval.MORE)
    metrics = [dict.fromkeys(keys, value) for value in values]
    seeds = list(range(1, len(values) + 1)) if row else None
    return result(task, name, *metrics, params=params | changes, seeds=seeds)


def finetuned(name, accuracy, losses=(2.0, 1.5), **changes):
    classifier = EXPERIMENT.active.classifier
    setting = EXPERIMENT.classification.settings[name].resolved(classifier)
    metrics = {"accuracy": accuracy, "best_epoch": 4, "best_accuracy": accuracy + 2, "steps": 15, "train_loss": 1.5}
    history = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, 1)]
    details = {"confusion": [[]] * 20, "untrained_labels": []}
    params = setting.model_dump() | changes
    return result("classification", name, metrics, params=params, seeds=[1], history=history, details=details)


def assigned_tables():
    """All of the original's tables, from runs with the committed params. Rows come in another order than printed."""
    heads = [head(name, 20.004 + index) for index, name in enumerate(reversed(EXPERIMENT.segmentation.heads))]
    cells = [cell(name, 10.0 + index, 11.0 + index) for index, name in enumerate(EXPERIMENT.captioning.cells)]
    recipes = [recall("retrieval", name, 40.0 + index) for index, name in enumerate(EXPERIMENT.retrieval.table4)]
    grid = [recall("retrieval_grid", name, 30.0 + index) for index, name in enumerate(EXPERIMENT.retrieval.grid)]
    settings = [finetuned(name, 60.0 + index) for index, name in enumerate(EXPERIMENT.classification.settings)]
    recall_metric = metric("image_to_text_r_at_1")
    return [
        segmentation.build_table(heads, metric("miou"), EXPERIMENT),
        *captioning.build_tables(cells[::-1], metric("bleu"), EXPERIMENT),
        retrieval.build_table(retrieval.TABLE4, recipes[::-1], recall_metric, EXPERIMENT),
        retrieval.build_table(retrieval.TABLE5, grid[::-1], recall_metric, EXPERIMENT, starred=True),
        classification.build_table(settings[::-1], metric("accuracy"), EXPERIMENT),
    ]


def parse_tables(page):
    """The tables of a page in markdown by caption, as rows of cells; the header is the first row."""
    tables = {}
    caption = None
    for line in page.splitlines():
        if re.fullmatch("__.*__", line):
            caption = line.strip("_")
            tables[caption] = []
        elif line.startswith("|") and caption is not None:
            tables[caption].append([cell.strip() for cell in line.strip("|").split("|")])
        elif line:
            caption = None
    return {caption: [rows[0], *rows[2:]] for caption, rows in tables.items()}


def printed(value, column):
    """A cell of the original as the tables print it."""
    if value is None:
        return "-"
    return format_scientific(value) if column in ("Learning Rate", "Weight Decay") else str(value)


def check_against(original, parsed):
    """Compare caption, columns, labels, order and decimals."""
    matches = [(caption, rows) for caption, rows in parsed.items() if caption.endswith(original["caption"])]
    ((caption, (columns, *rows)),) = matches
    assert re.fullmatch(r"(Table \d|Classification)\. ", caption.removesuffix(original["caption"]))
    assert columns == original["columns"]
    values = original["rows"]
    values = list(values.values()) if isinstance(values, dict) else values
    expected = [[printed(*cell) for cell in zip(row[:-1], columns[:-1], strict=True)] for row in values]
    assert [row[:-1] for row in rows] == expected
    numbers = [row[-1] for row in rows]
    assert all(re.fullmatch(r"\d+\.\d\d\*?", number) for number in numbers)
    if "*" in original["caption"]:
        highest = max(float(number.strip("*")) for number in numbers)
        assert all(number.endswith("*") == (float(number.strip("*")) == highest) for number in numbers)
    else:
        assert not any("*" in number for number in numbers)


def originals():
    tables = {"original.json": load_original()}
    if ASSIGNMENT.is_file():
        tables["the assignment"] = json.loads(ASSIGNMENT.read_text())
    return tables


@pytest.mark.parametrize("source", originals())
def test_the_tables_are_the_originals(tmp_path, source):
    """Parsed from the files and from the page, where they stand first, with nothing but captions between them."""
    tables = {table.name: table.assigned() for table in assigned_tables()}
    for name, table in tables.items():
        table.write(tmp_path, name)
    images = [Row(f"val_{index}", "val", "b.jpg") for index in range(SMOKE_RUN_IMAGES)]
    manifest = Manifest((Row("a", "train", "a.jpg"), *images), "somewhere", ())
    sections = [Section(Markdown("## Task\n"), assigned=tables)]
    page = build_page([manifest], "embedded", sections, Markdown("## Claims\n"), True, [])
    top = page.split("## Data")[0]
    parsed = parse_tables(top)
    assert list(parsed) == [table.heading for table in tables.values()]
    lines = [line for line in top.splitlines()[4:] if line and not line.startswith("|")]
    assert lines == [f"__{caption}__" for caption in parsed]
    for name in tables:
        original = originals()[source][name]
        check_against(original, parsed)
        file = (tmp_path / f"{name}.md").read_text()
        check_against(original, parse_tables(file))
        assert file.strip() in page
        assert f"\\caption{{{escape_latex(original['caption'])}}}" in (tmp_path / f"{name}.tex").read_text()
        rows = list(csv.reader((tmp_path / f"{name}.csv").open()))
        assert rows == next(iter(parse_tables(file).values()))


def test_a_table_has_the_originals_rows_only_and_the_comparison_has_all():
    heads = [head("mine", 1.0), head("convolutional_5x5", 2.0), head("linear", 12.0, 13.0), head("transformer", 60)]
    table = segmentation.build_table(heads, metric("miou"), EXPERIMENT)
    assert text(table.assigned())[1:] == [("Linear", "12.50"), ("Transformer", "60.00")]
    header, *rows = text(table.comparison())
    assert header == (
        "Head",
        "Validation mIoU",
        "Seeds",
        "95 % interval",
        "Original",
        "Best epoch",
        "Train loss",
    )
    assert rows == [
        ("Linear", "12.50 ± 0.71", "2", "11.50 to 13.50", "45.48", "13.50 (3)", "0.250"),
        ("Transformer", "60.00", "1", "59.00 to 61.00", "63.33", "61.00 (3)", "0.250"),
        ("mine", "1.00", "1", "0.00 to 2.00", "-", "2.00 (3)", "0.250"),
        ("convolutional_5x5", "2.00", "1", "1.00 to 3.00", "-", "3.00 (3)", "0.250"),
    ]


def test_differences_are_printed_for_the_originals_data_and_models_only():
    experiment = EXPERIMENT.model_copy(update={"profile": "paper"})
    heads = [head("linear", 40.0), head("mine", 1.0)]
    for row in heads:
        row.run.params.update(profile="paper", views=15)
        row.run.inputs["backbone"] = "vit_small_patch16_224.dino"
    table = segmentation.build_table(heads, metric("miou"), experiment)
    assert table.comparison().frame["Difference"].tolist() == ["-5.48", "-"]
    assert "*Difference* is ours minus the original's" in table.explanation()
    heads[0].run.params["views"] = 4
    assert table.comparison().frame["Difference"].tolist() == ["-", "-"]
    assert (
        "*Difference* is left out, since this run is not made as the original: views = 4 instead of 15"
        in table.explanation()
    )
    assert "Difference" not in segmentation.build_table(heads, metric("miou"), EXPERIMENT).comparison().frame
    settings = [finetuned("base", 90.0), finetuned("accumulated", 95.0)]
    for row in settings:
        row.run.params["profile"] = "paper"
        row.run.inputs["backbone"] = "vit_base_patch16_224.augreg_in1k@revision"
    accuracies = classification.build_table(settings, metric("accuracy"), experiment).comparison().frame
    assert accuracies["Difference"].tolist() == ["+1.00", "-"]
    settings[0].run.inputs["backbone"] = "vit_small_patch16_224.dino"
    accuracies = classification.build_table(settings, metric("accuracy"), experiment).comparison().frame
    assert accuracies["Difference"].tolist() == ["-", "-"]
    assert accuracies["Original"].tolist() == ["89", "over 94"]


def test_rows_with_other_settings_than_the_originals_have_no_original():
    cells = [cell("k1_t01", 3.0, temperature=0.3), cell("k5_t01", 4.0), cell("p", 5.0, type="top_p", p=0.9, prompt="")]
    cells.append(cell("beam", 6.0, type="beam", beams=3, prompt=""))
    (third,) = captioning.build_tables(cells, metric("bleu"), EXPERIMENT)
    assert [row[:4] for row in text(third.assigned())[1:]] == [
        ("Top-K sampling", "5", "0.1", "a picture of"),
        ("Top-K sampling", "1", "0.3", "a picture of"),
    ]
    assert third.comparison().frame["Original"].tolist() == ["28.14", "-", "-", "-"]
    assert third.comparison().frame["K"].tolist() == ["5", "1", "p = 0.9", "3 beams"]
    changed = recall("retrieval", "scratch", 40.0, lr=3e-3)
    fourth = retrieval.build_table(retrieval.TABLE4, [changed], metric("image_to_text_r_at_1"), EXPERIMENT)
    assert text(fourth.assigned())[1][1] == "3e-3"
    assert fourth.comparison().frame["Original"].tolist() == ["-"]


def test_a_setting_that_is_not_the_originals_has_its_name_for_a_label():
    base = EXPERIMENT.classification.settings["base"].model_copy(update={"epochs": 9})
    settings = EXPERIMENT.classification.model_copy(update={"settings": {"base": base}})
    experiment = EXPERIMENT.model_copy(update={"classification": settings})
    table = classification.build_table([finetuned("base", 70.0, epochs=9)], metric("accuracy"), experiment)
    assert text(table.assigned())[1:] == [("base", "70.00")]


def test_the_comparison_of_settings_has_what_they_were_trained_with():
    table = classification.build_table([finetuned("accumulated", 80.0)], metric("accuracy"), EXPERIMENT)
    (row,) = table.comparison().frame.to_dict("records")
    assert row["Learning Rate"] == "5e-4"
    assert row["Input"] == "88x88, augmented"
    assert (row["Effective batch size"], row["Steps"], row["Best epoch"]) == ("120", "15", "82.00 (4)")


def test_equal_steps_are_compared_with_the_setting_whose_steps_they_take():
    settings = [finetuned(name, 60.0 + index) for index, name in enumerate(EXPERIMENT.classification.settings)]
    (margin,) = classification.equal_step_margins(settings, metric("accuracy"))
    assert (margin.left.name, margin.right.name) == ("accumulated", "equal_steps")
    assert margin.difference == -1.0
    other_rate = finetuned("accumulated", 60.0, lr=1e-5)
    assert classification.equal_step_margins([other_rate, settings[-1]], metric("accuracy")) == []


def test_the_committed_params_are_the_originals_grid():
    """Every row of the original's tables is a run with the original's settings."""
    tables = assigned_tables()
    for table in tables:
        names = load_original()[table.name]["rows"]
        assert [row.result.name for row in table.assigned_rows] == list(names)
        assert all(original_value(row.result, EXPERIMENT) is not None for row in table.assigned_rows)


@pytest.mark.parametrize(
    ("value", "words"), [(1e-3, "1e-3"), (5e-4, "5e-4"), (0.05, "5e-2"), (0, "0"), (1.5e-5, "1.5e-5"), (None, "-")]
)
def test_learning_rates_are_printed_as_in_the_original(value, words):
    assert format_scientific(value) == words


def test_all_rows_that_print_the_highest_number_have_a_star():
    assert star_highest([20.004, 20.001, 3.0]) == ["20.00*", "20.00*", "3.00"]
    assert star_highest([]) == []


def test_the_page_says_whether_a_star_is_significant(monkeypatch):
    @dataclass
    class Margin:
        difference: float
        low: float
        high: float
        significant: bool

    (table,) = captioning.build_tables([cell("k5_t01", 4.0), cell("k10_t01", 3.8)], metric("bleu"), EXPERIMENT)
    for margin, words in (
        (
            Margin(0.21, -0.3, 0.7, False),
            "not significant: +0.21 over the second-best row, 95 % CI -0.30 to +0.70, without the randomness of samp",
        ),
        (
            Margin(1.0, 0.5, 1.5, True),
            "significant: +1.00 over the second-best row, 95 % CI +0.50 to +1.50, without the randomness of samp",
        ),
        (None, None),
    ):
        monkeypatch.setattr(comparison, "star_margin", lambda results, metric, margin=margin: margin)
        sentence = table.star_sentence()
        assert sentence is None if words is None else f"The star in Table 3 is {words}" in sentence
    (table,) = captioning.build_tables([cell("greedy", 4.0)], metric("bleu"), EXPERIMENT)
    assert table.star_sentence() is None


# ---- Numbers of all runs ----


def test_results_csv_is_numbers_by_run_and_their_means():
    bounds = {"bleu_low": 1.0, "bleu_high": 5.0}
    runs = [{"bleu": value, "words": 7.0, **bounds} for value in (2.0, 4.0)]
    params = cell("k5_t01", 1.0).run.params
    sampled = result("captioning", "k5_t01", *runs, params=params, seeds=[1, 2])
    greedy = result("captioning", "greedy", {"bleu": 9.0, **bounds}, params=cell("greedy", 1.0).run.params)
    tables = captioning.build_tables([sampled, greedy], metric("bleu"), EXPERIMENT)
    content = comparison.write_numbers([record for table in tables for record in table.numbers()])
    frame = pd.read_csv(io.StringIO(content))
    columns = ["table", "run", "metric", "value", "low", "high", "original", "profile", "seed"]
    assert list(frame.columns) == columns
    assert all(frame[key].dtype == float for key in ("value", "low", "high", "original", "seed"))
    assert len(frame) == 1 + 2 * 3
    bleu = frame[frame.metric == "bleu"]
    pooled = bleu[bleu.seed.isna()].set_index("run")
    assert pooled.loc["k5_t01", ["table", "value", "low", "high"]].tolist() == [captioning.TABLE3, 3.0, 2.0, 4.0]
    assert pooled["original"].to_dict() == {"greedy": 27.9, "k5_t01": 28.14}
    single = bleu[bleu.seed.notna()]
    assert single[["value", "low", "high", "seed"]].values.tolist() == [[2.0, 1.0, 5.0, 1.0], [4.0, 1.0, 5.0, 2.0]]
    assert single["original"].isna().all()


def test_metrics_are_the_same_from_the_store_and_from_the_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for seed in (1, 2):
        write_run(Run("segmentation", "linear", "s", {}, {"miou": seed / 3, "val_images": 7}, seed=seed))
    write_run(Run("position_similarity", "rotary", "s", {}, {}))
    names = {"segmentation": [("linear", 1), ("linear", 2)], "position_similarity": [("rotary", None)]}
    stored, from_store = load_results(names)
    assert from_store
    monkeypatch.setattr(registration, "register", lambda runs: None)
    recorded, from_store = load_results(names)
    assert not from_store
    for task in names:
        (first,), (second,) = stored[task], recorded[task]
        pd.testing.assert_frame_equal(first.frame, second.frame)
        assert all(first.run_ids)
        assert not any(second.run_ids)
    assert stored["segmentation"][0].metrics == {"miou": 0.5, "val_images": 7.0}
    assert list(stored["segmentation"][0].frame.index) == ["linear-seed1", "linear-seed2"]
    assert stored["position_similarity"][0].metrics == {}


def test_runs_are_expected_with_every_seed_of_their_task():
    runs = expected_runs(EXPERIMENT)
    seeds = EXPERIMENT.captioning.seeds
    assert [seed for name, seed in runs["captioning"] if name == "k5_t01"] == seeds
    assert [seed for name, seed in runs["captioning"] if name == "greedy"] == [None]
    assert [seed for name, seed in runs["retrieval"] if name == "provided"] == [None]
    assert [seed for name, seed in runs["retrieval"] if name == "scratch"] == EXPERIMENT.retrieval.seeds
    assert ("linear", EXPERIMENT.segmentation.seeds[0]) in runs["segmentation"]


def test_skipped_tasks_give_their_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark_skipped("x has no captions", RUNS / "captioning")  # one stage makes all runs
    mark_skipped("x has no labels", RUNS / "classification/base-seed1.json")  # one stage per run
    runs = {"captioning": [("greedy", None)], "classification": [("base", 1)], "retrieval": [("scratch", 1)]}
    assert skip_reasons(runs) == {"captioning": "x has no captions", "classification": "x has no labels"}


# ---- Markdown and LaTeX ----


def plain_text(markdown):
    """What a reader of rendered markdown sees, tags removed; `Markup` would unescape too late."""
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    assert "<script" not in html
    without_tags = re.sub(r"<[^>]+>", "", html)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        without_tags = without_tags.replace(entity, character)
    return without_tags


def test_text_appears_in_markdown_as_it_is():
    line = NASTY.replace("\n", " ")
    assert plain_text(escape(NASTY)).strip() == line
    assert plain_text(f"before {code(NASTY)} after").strip() == f"before {line} after"
    assert escape(escape(NASTY)) == escape(NASTY)
    assert escape("scratch_lr1e-3") == "scratch_lr1e-3"
    assert prose("`<end>` < *a*, `k5_t01`") == r"`<end>` &lt; \*a\*, `k5_t01`"


def test_a_table_prints_any_text_as_markdown_csv_and_latex(tmp_path):
    table = Table("Caption (* of a table)", pd.DataFrame({"Head": [NASTY, "1e5"], "a|b_%": ["1.00", "-"]}), ("Head",))
    rendered = plain_text(table.markdown())
    assert "Caption (* of a table)" in rendered
    assert NASTY.replace("\n", " ") in rendered
    assert "a|b_%" in rendered
    html = MarkdownIt("commonmark").enable("table").render(table.markdown())
    assert html.count("<tr>") == 3
    assert html.count("<td") == 4
    assert "<strong>" in html
    table.write(tmp_path, "name_1")
    assert list(csv.reader((tmp_path / "name_1.csv").open(newline=""))) == [
        ["Head", "a|b_%"],
        [NASTY, "1.00"],
        ["1e5", "-"],
    ]
    latex = (tmp_path / "name_1.tex").read_text()
    assert r"Head & a\textbar{}b\_\% \\" in latex
    assert r"\textless{}script\textgreater{}alert" in latex
    assert r"\$g\$ \&amp; \_h\_ & 1.00 \\" in latex
    assert r"\caption{Caption (* of a table)}" in latex
    assert r"\label{tab:name_1}" in latex
    assert table.plain().splitlines()[0] == table.caption


def test_a_page_prints_names_and_reasons_as_they_are():
    rows = (Row("a", "train", "a.jpg", height=20, width=30), Row("b", "val", "b.jpg", height=40, width=25))
    inputs = {"backbone": NASTY, "weights": "ab" * 32}
    run = Run("task", "name", "s", {}, {}, inputs=inputs)
    skipped = render("skipped.md", title="Task", tables="Table 1 is", reason=NASTY)
    manifest = Manifest(rows, NASTY, (NASTY, "star"), license=NASTY)
    page = build_page([manifest], "folder", [Section(skipped)], Markdown("## Claims\n"), False, [run])
    line = NASTY.replace("\n", " ")
    rendered = plain_text(page)
    assert rendered.count(line) == 5
    assert "Table 1 is left out:" in rendered


def page_of_versions(*versions):
    """The page of two runs with these packages."""
    inputs = {"backbone": "vit", "weights": "ab" * 32}
    rows = (Row("a", "train", "a.jpg", height=20, width=30), Row("b", "val", "b.jpg", height=40, width=25))
    runs = [
        Run("task", name, "s", {}, {}, inputs=inputs, versions=packages)
        for name, packages in zip(("first", "second"), versions, strict=True)
    ]
    return build_page([Manifest(rows, "somewhere", ())], "folder", [], Markdown("## Claims\n"), False, runs)


@pytest.mark.parametrize(("images", "is_marked"), [(SMOKE_RUN_IMAGES - 1, True), (SMOKE_RUN_IMAGES, False)])
def test_a_page_of_few_images_is_marked_as_a_smoke_run(images, is_marked):
    """Also if only one of the two data sets is small."""
    large = Manifest(tuple(Row(f"a{index}", "val", "a.jpg") for index in range(1000)), "somewhere", ())
    small = Manifest(tuple(Row(f"b{index}", "val", "b.jpg") for index in range(images)), "elsewhere", ())
    page = build_page([large, small], "folder", [], Markdown("## Claims\n"), False, [])
    top = page.split("## Data")[0]
    assert ("**A smoke run: the numbers on this page mean nothing.**" in top) is is_marked
    assert (f"on {images} validation images" in top) is is_marked


def test_the_page_says_which_runs_were_made_with_which_versions_if_they_differ():
    page = page_of_versions({"torch": "2.15.0", "numpy": "2.4.6"}, {"torch": "2.16.0", "numpy": "2.4.6"})
    assert "versions of packages.** torch: 2.15.0 (task/first), 2.16.0 (task/second). With `dvc repro --force`" in page
    assert "torch 2.15.0 and 2.16.0" in page.split("Packages: ")[1]
    assert "numpy 2.4.6," in page.split("Packages: ")[1]


def test_the_page_says_if_it_was_made_with_other_versions_than_a_run():
    page = page_of_versions({"scipy": "0.0.1"}, {})
    assert f"scipy: 0.0.1 (task/first), {version('scipy')} (report). With" in page


def test_the_page_says_nothing_of_versions_that_are_the_same():
    assert "different versions" not in page_of_versions({"torch": "2.15.0"}, {"torch": "2.15.0", "numpy": "2.4.6"})


def test_links_to_figures_are_urls():
    assert link("reports/figures/my head (1).png") == "figures/my%20head%20%281%29.png"


# Words of the templates that contain digits and are no results.
WORDS_WITH_DIGITS = re.compile(
    r"\b(95 % CI|95 % interval|BLEU-4|BLEU-1 to 3|R@(1|5|10)|from 0|to 0|(in|ex)cludes? 0|of 0)\b"
)
FORMATS = re.compile(r"%[+.\d]*[dfg]|[a-z_]+_at_\d+")


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.md")), ids=lambda path: path.name)
def test_no_result_is_typed_in_a_template(path):
    """Prose holds no digits but those of fixed terms; neither do the strings that a template prints."""
    source = path.read_text()
    assert not re.search(r"`[^`\n]*\{\{", re.sub(r"```.*?```|`[^`{]*`", "", source)), "use the filter `code`"
    for line, kind, value in Environment(trim_blocks=True, lstrip_blocks=True).lex(source):
        if kind == "data":
            value = WORDS_WITH_DIGITS.sub("", re.sub(r"\]\(.*?\)", "", value))  # without links
        elif kind == "string":
            value = FORMATS.sub("", value)
        if kind in ("data", "string"):
            assert not re.search(r"\d", value), f"{path.name}:{line}: {value.strip()}"


# ---- The page and its sections ----


def test_the_page_describes_images_of_different_sizes_and_a_source_without_masks():
    rows = (Row("a", "train", "a.jpg", height=20, width=30), Row("b", "val", "b.jpg", height=40, width=25))
    run = Run("task", "name", "s", {}, {}, inputs={"backbone": "vit", "weights": "ab" * 32})
    untrained = Run("task", "other", "s", {"random": True}, {}, inputs={"backbone": "vit", "weights": "cd" * 32})
    runs = [run, untrained]
    sections = [Section(Markdown("## Task\n"))]
    page = build_page([Manifest(rows, "somewhere", ())], "folder", sections, Markdown("## Claims\n"), False, runs)
    assert (
        """
- Source: `somewhere`; license: unknown
- Images: 1 train, 1 val; 30x20 to 25x40 pixels
- No masks
- Captions: none; labels: none

## Task

## Claims

---

Packages: """
        in page
    )
    assert "tables are read from the run records" in page
    assert "Weights: vit `abababababab`." in page


def captioning_page(**params):
    run = cell("greedy", 1.0, **params).run
    run.inputs["backbone"] = "blip"
    context = {"images": 7.0, "naming": None, "seeds": 3, "overruns": captioning.overrun_rows()}
    tables = captioning.build_tables([cell("greedy", 1.0)], metric("bleu"), EXPERIMENT)
    return render("captioning.md", run=run, tables=tables, **context)


def test_the_captioning_section_says_how_the_originals_captions_end():
    page = captioning_page(stop="end_token")
    assert "6.8 (K = 50, T = 1.0) and 11.7 (K = 50, T = 0.7)" in page
    assert "Here a caption ends at its end token; `captioning.stop: batch`" in page
    assert "The captions here run on in the same way" in captioning_page(stop="batch")


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
    provided = result("retrieval", "provided", {}, params={"views": 4}, inputs=inputs)
    table = retrieval.build_table(
        retrieval.TABLE4, [recall("retrieval", "provided", 1.0)], metric("image_to_text_r_at_1"), EXPERIMENT
    )
    page = render("retrieval.md", run=provided.run, gallery=7.0, tables=[table], seeds=5)
    assert "share of 7 validation images" in page
    assert (line in page) if line else ("unknown" not in page)


def test_what_captions_name_is_a_mean_over_seeds_of_the_captions_that_name_it():
    greedy, sampled, other = cell("greedy", 20.0), cell("k50_t1", 10.0, 11.0), cell("k5_t01", 9.0)
    shared = {"images": 200.0, "class_named": 97.04, "color_named": 96.0}
    for seed, right in enumerate((80.0, 90.0)):
        frame = sampled.frame
        for key, value in {**shared, "place_named": 10 + seed, "place_right": right, "relation_named": 0.0}.items():
            frame.loc[frame.index[seed], key] = value
    for key, value in {**shared, "place_named": 30.5, "place_right": 88.88, "relation_named": 1.0}.items():
        greedy.frame[key] = value
    greedy.frame["relation_right"] = 50.0
    header, *rows = text(captioning.naming_table([greedy, sampled, other]))
    assert header == ("Decoding", "Class named (%)", "Color named (%)", "Place right (%)", "Relation right (%)")
    assert [row[1:] for row in rows] == [
        ("97.0", "96.0", "88.9 of 61", "50.0 of 2"),
        ("97.0", "96.0", "85.0 of 21", "-"),
    ]
    assert not captioning.naming_table([other])


def test_settings_that_were_still_learning_are_named():
    (setting,) = classification.still_learning([finetuned("base", 70.0)])
    assert setting == {"name": "base", "loss": 1.5, "steps": 15.0, "images": 8}


@pytest.mark.parametrize(
    "losses", [(2.0, 0.01), (2.0, 2.1), (3.2, 3.1), (1.5,)], ids=["trained", "rising", "no better than chance", "one"]
)
def test_settings_that_were_not_learning_at_the_end_are_not_named(losses):
    assert classification.still_learning([finetuned("base", 70.0, losses)]) == []


def test_skipped_attention_stages_give_their_reason_and_the_others_stay():
    rotary = result("position_similarity", "rotary", {}, inputs={"backbone": "rotary"})
    skipped = {"class_attention": "x has no class token", "caption_attention": "y has no captions"}
    manifest = Manifest((), "somewhere", ())
    section = attention.section(Inputs({"position_similarity": [rotary]}, skipped, manifest, manifest, EXPERIMENT), {})
    assert "`rotary` has no learned position embeddings to show." in section.text
    assert "Left out: x has no class token." in section.text
    assert "Left out: y has no captions." in section.text
    assert not section.tables
    assert not section.metrics
    assert not section.numbers


def test_captions_are_read_by_cell_and_seed(tmp_path):
    columns = {
        "cell": ["greedy", "k", "k"],
        "seed": pa.array([None, 1, 2], pa.int64()),
        "image_id": ["a", "a", "a"],
        "caption": ["x", "y", "z"],
        "reference": ["r", "r", "r"],
    }
    pq.write_table(pa.table(columns), tmp_path / "captions.parquet")
    captions = read_captions(tmp_path / "captions.parquet")
    assert captions["greedy", None] == {"a": ("x", "r")}
    assert captions["k", 2] == {"a": ("z", "r")}


# ---- Figures ----


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
