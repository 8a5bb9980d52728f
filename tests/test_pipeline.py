"""The real pipeline, shrunk to a handful of images, through `dvc repro` in a temporary clone."""

import json
import os
import re
import signal
import time

import pytest
from conftest import ROOT
from mlflow import MlflowClient

STREET = ROOT.parent / "shared/data/street"
TABLE = "reports/tables/table1_segmentation.csv"
COMPARED = ("reports/report.md", TABLE, "reports/metrics.json", "reports/runs/segmentation/linear.json")


@pytest.fixture(scope="module")
def undisturbed(clone_project):
    project = clone_project()
    made = project.repro()
    assert made.returncode == 0, made.stdout + made.stderr
    return project


def test_a_fresh_clone_gets_a_report_from_runs(undisturbed):
    report = undisturbed.read("reports/report.md").decode()
    rows = undisturbed.read(TABLE).decode().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Head", "Linear", "Transformer"]
    record = json.loads(undisturbed.read("reports/runs/segmentation/linear.json"))
    assert rows[1].split(",")[1] == f"{record['metrics']['miou']:.2f}"
    assert "Tables are read from the MLflow runs." in report
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 7
    for picture in pictures:
        assert (undisturbed.root / "reports" / picture).stat().st_size > 5000


def test_the_shipped_checkpoint_is_not_made_again(undisturbed):
    assert "pretrain" not in json.loads(undisturbed.read("reports/timings.json"))


def test_a_second_repro_does_nothing(undisturbed):
    again = undisturbed.repro()
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout


def test_git_sees_only_committed_results(undisturbed):
    told = undisturbed.run("git", "status", "--porcelain").stdout
    changed = {line[3:] for line in told.splitlines()}
    assert all(path.startswith("reports/") or path == "dvc.lock" for path in changed), changed
    assert not undisturbed.run("git", "ls-files", "--others", "--exclude-standard", "data").stdout


def test_another_clone_killed_twice_ends_in_the_same_bytes(clone_project, undisturbed):
    project = clone_project()
    for reached in ("data/scenes/JPEGImages/train_00003.jpg", "reports/runs/segmentation/linear.json"):
        process = project.start_repro()
        deadline = time.monotonic() + 200
        while not (project.root / reached).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = project.repro()
    assert made.returncode == 0, made.stdout + made.stderr
    for path in COMPARED:
        assert project.read(path) == undisturbed.read(path), path
    for path in (undisturbed.root / "reports/figures").rglob("*.png"):
        assert path.read_bytes() == project.read(str(path.relative_to(undisturbed.root))), path


def test_one_changed_head_reruns_alone_through_exp_run(undisturbed):
    made = undisturbed.run("dvc", "exp", "run", "-S", "segmentation.heads.transformer.shared_qk=true", "-n", "other")
    assert made.returncode == 0, made.stdout + made.stderr
    ran = re.findall(r"Running stage '(.*?)'", made.stdout)
    assert ran == ["train_head@transformer", "report"]
    undisturbed.run("git", "checkout", "params.yaml")
    assert undisturbed.repro().returncode == 0


def test_runs_lost_with_the_store_are_registered_again_before_the_report(undisturbed):
    (undisturbed.root / "mlflow.db").unlink()
    before = undisturbed.read("reports/report.md")
    made = undisturbed.repro("-f", "-s", "report")
    assert made.returncode == 0, made.stdout + made.stderr
    assert undisturbed.read("reports/report.md") == before
    client = MlflowClient(f"sqlite:///{undisturbed.root / 'mlflow.db'}")
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert {run.data.tags["dvc.stage"] for run in found} == {"train_head@linear", "train_head@transformer"}


def test_an_unreachable_store_costs_no_result_and_the_report_says_so(undisturbed):
    undisturbed.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        made = undisturbed.repro("-f", "-s", "report")
    finally:
        del undisturbed.environment["MLFLOW_TRACKING_URI"]
    assert made.returncode == 0, made.stdout + made.stderr
    assert "not usable" in made.stderr
    assert "tables are read from the run records" in undisturbed.read("reports/report.md").decode()
    assert undisturbed.repro("-f", "-s", "report").returncode == 0


def test_metrics_and_plots_are_shown_without_a_network(undisturbed):
    shown = undisturbed.run("dvc", "metrics", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    assert '"miou"' in shown.stdout
    assert undisturbed.run("dvc", "metrics", "diff").returncode == 0
    plots = undisturbed.run("dvc", "plots", "show")
    assert plots.returncode == 0, plots.stdout + plots.stderr
    page = (undisturbed.root / "dvc_plots/index.html").read_text()
    assert "miou_per_epoch.png" in page


def test_a_wrong_param_stops_with_its_key_and_what_is_allowed(undisturbed):
    made = undisturbed.run("dvc", "exp", "run", "-S", "segmentation.lr=fast")
    assert made.returncode != 0
    assert "params.yaml: segmentation.lr = 'fast'" in made.stderr + made.stdout
    assert "Traceback" not in made.stderr + made.stdout
    undisturbed.run("git", "checkout", "params.yaml")


@pytest.mark.skipif(not STREET.is_dir(), reason="the street photographs are not beside the project")
def test_real_photographs_run_end_to_end(clone_project):
    project = clone_project()
    made = project.run("dvc", "exp", "run", "-S", "profile=folder", "-S", f"folder.path={STREET}")
    assert made.returncode == 0, made.stdout + made.stderr
    report = project.read("reports/report.md").decode()
    assert "60 train, 30 val; 320x240 pixels" in report
    assert "bicyclist" in report
