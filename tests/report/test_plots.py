"""The plots of DVC: their data has all runs, and `dvc plots show` draws them in a browser without a network."""

import csv
import json
import shutil
import subprocess

import pandas as pd
import pytest
from conftest import ROOT
from playwright.sync_api import sync_playwright
from ruamel.yaml import YAML

from stages.core.runs import Run
from stages.report.captioning import bleu_rows
from stages.report.plots import confusion_rows, curve_rows, write_plot
from stages.report.results import Result

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LABELS = ("cat", "dog </script><script>alert(1)</script>")
PLOTS = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]


def result(name, seeds=(1,), metrics=None, history=(), params=None, **fields):
    """A result of equal runs; `history` holds the values of each epoch."""
    rows = [{"epoch": epoch, **values} for epoch, values in enumerate(history, 1)]
    runs = tuple(Run("task", name, "s", params or {}, metrics or {}, rows, seed=seed, **fields) for seed in seeds)
    return Result(runs, pd.DataFrame([run.metrics for run in runs]), (None,) * len(runs))


def cell(name, bleu, seeds=(None,), **params):
    return result(name, seeds, {"bleu": bleu}, params={"prompt": "a picture of", **params})


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the data of all plots. One run of each kind is not in this project's params.yaml."""
    folder = tmp_path_factory.mktemp("plots")
    losses = {"train_loss": 2.0, "val_loss": 1.5}
    trained = [result(name, history=[{"miou": 10.0, **losses}, {"miou": 20.5, **losses}]) for name in ("linear", "new")]
    recalls = [{"r_at_1": 40.0, **losses}, {"r_at_1": 50.0, **losses}]
    projections = [result("provided", (None,), {"r_at_1": 55.0}), result("my_row", (1, 2), history=recalls)]
    settings = [
        result(name, history=[{"accuracy": 50.0, **losses}] * 2, details={"confusion": [[3, 0], [1, 0]]})
        for name in ("base", "my_setting")
    ]
    cells = [
        cell("greedy", 17.0, type="greedy"),
        cell("k5", 16.0, (1, 2), type="top_k", k=5, temperature=0.5),
        cell("k5_warm", 12.0, (1, 2), type="top_k", k=5, temperature=1.0),
        cell("my_nucleus", 14.0, (1, 2), type="top_p", p=0.9, temperature=0.7),
    ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        write_plot("segmentation", curve_rows(trained, {"train_loss": "train_loss", "miou": "miou"}))
        write_plot("retrieval", curve_rows(projections, {"train_loss": "train_loss", "r_at_1": "r_at_1"}))
        columns = {key: key for key in ("train_loss", "val_loss", "accuracy")}
        write_plot("classification", curve_rows(settings, columns))
        write_plot("captioning", bleu_rows(cells))
        write_plot("confusion", confusion_rows(settings, LABELS))
    return folder


def test_curves_have_a_row_per_run_seed_and_epoch(project):
    provided, *trained = read_rows(project / "reports/plots/retrieval.csv")
    assert provided == {"run": "provided", "seed": "", "epoch": "", "train_loss": "", "r_at_1": "55"}
    assert [(row["seed"], row["epoch"], row["r_at_1"]) for row in trained] == [
        ("1", "1", "40"),
        ("1", "2", "50"),
        ("2", "1", "40"),
        ("2", "2", "50"),
    ]


def test_confusions_are_counts_with_every_label_on_the_diagonal(project):
    rows = read_rows(project / "reports/plots/confusion.csv")
    assert [int(row["images"]) for row in rows if row["run"] == "base-seed1"] == [3, 1, 0]
    true, predicted = ({row[column] for row in rows} for column in ("true", "predicted"))
    assert true == predicted
    # DVC writes these into a script of its page, where a tag would end the script.
    assert not any("<" in label for label in true)


def test_a_line_of_bleu_has_the_cells_that_differ_in_temperature_only(project):
    lines = {row["run"]: row["line"] for row in read_rows(project / "reports/plots/captioning.csv")}
    assert lines["k5"] == lines["k5_warm"] == 'Top-K sampling, K = 5, "a picture of"'
    assert lines["my_nucleus"] == 'Top-p sampling, p = 0.9, "a picture of"'
    assert lines["greedy"] == 'Greedy search, "a picture of"'


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
def test_dvc_draws_every_plot_offline(project):
    """No request leaves the page, and nothing is written to its console; every run has an entry in a legend."""
    shutil.copytree(ROOT / ".dvc/plots", project / ".dvc/plots")
    shutil.copy(ROOT / ".dvc/config", project / ".dvc/config")
    (project / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    (project / "dvc.yaml").write_text(json.dumps({"plots": PLOTS}))
    shown = subprocess.run(["dvc", "plots", "show"], cwd=project, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr

    messages = []
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        url = (project / "dvc_plots/index.html").as_uri()
        page.on("request", lambda request: messages.append(request.url) if request.url != url else None)
        page.goto(url)
        page.wait_for_function(f"document.querySelectorAll('svg.marks').length == {len(PLOTS)}")
        texts = page.locator("svg.marks").all_text_contents()
    assert messages == []
    for plot, text in zip(PLOTS, texts, strict=True):
        ((title, definition),) = plot.items()
        labels = (title, definition.get("x_label", definition["x"]), definition["y_label"])
        assert all(label in text for label in labels), title
    text = "\n".join(texts)
    for name in ("new", "my_row", "my_setting", "my_setting-seed1", "Top-p sampling, p = 0.9"):
        assert name in text
