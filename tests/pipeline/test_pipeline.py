"""The real pipeline, shrunk to a handful of images, through `dvc repro` in a temporary clone."""

import csv
import json
import os
import re
import shutil
import signal
import time

import pandas as pd
import pytest
from conftest import Project
from mlflow import MlflowClient

TABLE = "reports/tables/table1_segmentation.csv"


OUTPUTS = (
    "data/objects/JPEGImages/star_1.jpg",
    "data/manifest.parquet",
    "data/models/segmentation/linear-seed1.safetensors",
    "data/models/classification/accumulated-seed1/last.safetensors",
    "data/models/classification/accumulated-seed1/best.safetensors",
    "data/predictions/classification/accumulated-seed1.parquet",
    "reports/runs/segmentation/linear-seed1.json",
    "reports/runs/classification/accumulated-seed1.json",
)
TARGETS = ("train_head@linear-1", "finetune@accumulated-1")


@pytest.fixture(scope="module")
def undisturbed(clone_project):
    project = clone_project()
    result = project.repro()
    assert result.returncode == 0, result.stdout + result.stderr
    project.first_report = project.read("reports/report.md")
    return project


def test_a_fresh_clone_gets_a_report_from_runs(undisturbed):
    report = undisturbed.read("reports/report.md").decode()
    rows = undisturbed.read(TABLE).decode().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Head", "Linear", "Transformer"]
    record = json.loads(undisturbed.read("reports/runs/segmentation/linear-seed1.json"))
    assert rows[1].split(",")[1] == f"{record['metrics']['miou']:.2f}"
    page = undisturbed.read("reports/report.html").decode()
    assert f">{record['metrics']['miou']:.2f}</td>" in page
    assert "Tables are read from the MLflow runs." in report
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 7 + 2 + 2 + 3 + 2 + 2 + 2 + 2
    for picture in pictures:
        assert (undisturbed.root / "reports" / picture).stat().st_size > 5000


def kill_when(project, file: str) -> None:
    """Run the targets until `file` exists, then kill all processes."""
    process = project.start_repro(*TARGETS)
    deadline = time.monotonic() + 300
    while not (project.root / file).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "finished before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_pipeline_killed_twice_ends_in_the_bytes_of_an_undisturbed_one(clone_project, undisturbed):
    project = clone_project()
    kill_when(project, "data/scenes/JPEGImages/train_00003.jpg")
    kill_when(project, "data/resume/finetune/accumulated-seed1/state.pt")
    result = project.repro(*TARGETS)
    assert result.returncode == 0, result.stdout + result.stderr
    for path in OUTPUTS:
        assert project.read(path) == undisturbed.read(path), path


def test_tables_2_to_5_come_from_runs(undisturbed):
    cells = [json.loads(undisturbed.read(f"reports/runs/captioning/k50_t1-seed{seed}.json")) for seed in (1, 2)]
    bleu = sum(cell["metrics"]["bleu"] for cell in cells) / 2
    rows = undisturbed.read("reports/tables/table2_captioning.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Type", "Greedy search", "Top-K sampling"]
    assert rows[2].split(",")[4] == f"{bleu:.2f}"
    assert "| Beam search | 3 beams |" in undisturbed.read("reports/report.md").decode()
    record = json.loads(undisturbed.read("reports/runs/retrieval/scratch-seed1.json"))
    numbers = pd.read_csv(undisturbed.root / "reports/results.csv")
    scratch = numbers[(numbers["run"] == "scratch") & (numbers["metric"] == "image_to_text_r_at_1")].set_index("seed")
    assert scratch.loc[1, "value"] == pytest.approx(record["metrics"]["image_to_text_r_at_1"], rel=1e-12)
    (mean,) = scratch[scratch.index.isna()]["value"]
    assert mean == pytest.approx(scratch.loc[[1, 2], "value"].mean(), rel=1e-12)
    rows = undisturbed.read("reports/tables/table4_retrieval.csv").decode().splitlines()
    assert rows[2].split(",")[5] == f"{mean:.2f}"
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert record["metrics"]["gallery"] == 7


def test_the_classification_table_and_the_pictures_come_from_runs(undisturbed):
    record = json.loads(undisturbed.read("reports/runs/classification/base-seed1.json"))
    rows = undisturbed.read("reports/tables/classification.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows] == [
        "Setting",
        "base",
        "accumulated",
    ]  # with other epochs than the report's
    assert rows[1].split(",")[1] == f"{record['metrics']['accuracy']:.2f}"
    assert record["metrics"]["images"] == 20
    attention = json.loads(undisturbed.read("reports/runs/class_attention/pretrained.json"))["metrics"]
    lines = undisturbed.read("reports/tables/class_token_attention.csv").decode().splitlines()
    assert lines[1].split(",")[:2] == ['"pretrained', ' last block"']
    assert lines[1].split(",")[2] == f"{attention['mean_mass']:.1f}"
    words = undisturbed.read("reports/tables/caption_attention.csv").decode().splitlines()
    assert words[-1].startswith('"Other words')
    captioned = sorted(path.name for path in (undisturbed.root / "reports/pictures/caption_attention").iterdir())
    assert captioned == ["val_00000.png", "val_00006.png"]
    second = sorted(path.name for path in (undisturbed.root / "reports/pictures/second_captioner").iterdir())
    assert second == captioned
    record = json.loads(undisturbed.read("reports/runs/second_captioner/catr.json"))
    assert record["inputs"]["backbone"] == "data/checkpoints/catr_scenes"
    assert list(record["details"]["captions"]) == ["val_00000", "val_00006"]


def test_predict_and_look_take_any_image(undisturbed):
    images = "data/objects/JPEGImages"
    result = undisturbed.run("python", "-m", "stages.classification.predict", images, "--setting", "accumulated")
    assert result.returncode == 0, result.stderr
    weights = "data/models/classification/accumulated-seed1/best.safetensors"
    assert f"predictions.csv: 40 images, by {weights}" in result.stdout
    assert undisturbed.read("predictions.csv").decode().startswith("filename,label\n")
    for kind in ("class-token", "caption"):
        result = undisturbed.run("python", "-m", "stages.attention.look", kind, f"{images}/star_1.jpg")
        assert result.returncode == 0, result.stderr
        picture = result.stdout.split()[-1]
        assert picture == f"reports/look/star_1.jpg.{kind.replace('-', '_')}.png"
        assert (undisturbed.root / picture).stat().st_size > 5000
    missing = undisturbed.run("python", "-m", "stages.attention.look", "caption", "nowhere.jpg")
    assert (missing.returncode, missing.stderr.strip().splitlines()[-1]) == (2, "look: nowhere.jpg: missing")
    assert not undisturbed.run("git", "ls-files", "--others", "--exclude-standard", "reports/look").stdout


def test_the_shipped_checkpoints_are_not_trained_again(undisturbed):
    assert not {"pretrain", "pretrain_blip", "pretrain_catr"} & set(
        json.loads(undisturbed.read("reports/timings.json"))
    )


def test_a_second_repro_runs_nothing(undisturbed):
    again = undisturbed.repro()
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout


def test_git_sees_only_committed_results(undisturbed):
    status = undisturbed.run("git", "status", "--porcelain").stdout
    changed = {line[3:] for line in status.splitlines()}
    assert all(path.startswith("reports/") or path == "dvc.lock" for path in changed), changed
    assert not undisturbed.run("git", "ls-files", "--others", "--exclude-standard", "data").stdout


def test_a_second_clone_pulls_all_results_and_computes_nothing(undisturbed, tmp_path):
    undisturbed.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    undisturbed.run("git", "add", "--all")
    undisturbed.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "results")
    pushed = undisturbed.run("dvc", "push")
    assert pushed.returncode == 0, pushed.stderr
    assert undisturbed.run("git", "clone", "-q", ".", str(tmp_path / "second")).returncode == 0
    second = Project(tmp_path / "second")
    pulled = second.run("dvc", "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert second.read("reports/report.html") == undisturbed.read("reports/report.html")
    again = second.repro()
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout
    assert not second.run("git", "status", "--porcelain").stdout
    # The report did not run, so its runs are not in the clone's MLflow store; `make ui` registers them.
    assert not (second.root / "mlflow.db").exists()


def test_an_unreachable_store_loses_no_result_and_the_report_says_so(undisturbed):
    undisturbed.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        result = undisturbed.repro("-f", "-s", "report")
    finally:
        del undisturbed.environment["MLFLOW_TRACKING_URI"]
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not usable" in result.stderr
    assert "tables are read from the run records" in undisturbed.read("reports/report.md").decode()


def test_a_fresh_clone_with_all_results_registers_its_runs(undisturbed):
    """Committed results are not computed again; the MLflow store and the DVC cache are missing in a fresh clone."""
    for name in ("mlflow.db", "data/report_runs.json"):
        (undisturbed.root / name).unlink()
    cached = undisturbed.root / ".dvc/cache"
    cached.rename(cached.with_name("away"))
    try:
        result = undisturbed.run("dvc", "repro", "-s", "report")
    finally:
        shutil.rmtree(cached, ignore_errors=True)
        cached.with_name("away").rename(cached)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Running stage 'report'" in result.stdout
    assert undisturbed.read("reports/report.md") == undisturbed.first_report
    client = MlflowClient(f"sqlite:///{undisturbed.root / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.data.tags["dvc.stage"] for run in runs} == {
        "train_head@linear-1",
        "train_head@transformer-1",
        "caption",
        "train_retrieval",
        "train_retrieval_grid",
        "finetune@base-1",
        "finetune@accumulated-1",
        "position_similarity",
        "class_attention",
        "caption_attention",
        "second_captioner",
        "report",
    }
    parents = [run.info.run_id for run in runs if run.data.tags["dvc.stage"] == "report"]
    children = [run for run in runs if run.info.run_id not in parents]
    assert len(children) == 2 + (1 + 2 + 1) + (1 + 2 + 2) + 2 + 2 + 1 + 2 + 1 + 1
    assert len(parents) == 9
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == set(parents)
    assert all("report" in run.data.tags for run in runs)
    assert sum("vitlab.model" in run.data.tags for run in runs) == 2 + 2


def test_dvc_shows_metrics_and_plots_offline(undisturbed):
    metrics = undisturbed.run("dvc", "metrics", "show", "--json")
    assert metrics.returncode == 0, metrics.stderr
    assert '"miou"' in metrics.stdout
    assert undisturbed.run("dvc", "metrics", "diff").returncode == 0
    result = undisturbed.run("dvc", "plots", "show", "--json")
    assert result.returncode == 0, result.stderr
    plots = json.loads(result.stdout)["data"]
    assert len(plots) == 9
    # dvc.yaml names no run: those of these params are drawn.
    runs = {name: {row["run"] for row in plot[0]["content"]["data"]["values"]} for name, plot in plots.items()}
    assert runs["Segmentation: validation mIoU"] == {"linear", "transformer"}
    assert runs["Captioning: BLEU-4 against temperature"] == {"greedy", "k50_t1", "beam"}
    assert runs["Retrieval: R@1, image to text"] == {"provided", "scratch", "finetuned", "mine"}
    assert runs["Classification: validation accuracy"] == {"base", "accumulated"}
    assert runs["Classification: confusion matrices"] == {"base-seed1", "accumulated-seed1"}


def test_images_are_found_by_a_sentence_and_captions_by_an_image(undisturbed):
    search = ("python", "-m", "stages.retrieval.search")
    result = undisturbed.run(*search, "a red dog")
    assert result.returncode == 0, result.stderr
    assert "unknown to data/checkpoints/blip_scenes: dog" in result.stdout
    assert len(re.findall(r"^ ?\d+  -?\d\.\d{3}  val_0000\d$", result.stdout, re.MULTILINE)) == 7
    assert (undisturbed.root / "reports/search.png").stat().st_size > 5000
    result = undisturbed.run(*search, "data/scenes/JPEGImages/val_00000.jpg", "--run", "provided")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^ ?\d+  -?\d\.\d{3}  \w+ \w+", result.stdout, re.MULTILINE)) == 7
    missing = undisturbed.run(*search, "nowhere.jpg")
    assert missing.returncode == 2
    assert missing.stderr.strip() == "search: nowhere.jpg: missing"


def test_an_added_backbone_gets_a_row_and_reruns_nothing_else(undisturbed):
    change = "+backbones.mine={source: backbone, layers: [0, -1]}"
    result = undisturbed.run("dvc", "exp", "run", "-S", change)
    assert result.returncode == 0, result.stdout + result.stderr
    ran = re.findall(r"Running stage '(.*?)'", result.stdout)
    assert sorted(ran) == ["check_params", "extract_backbone@mine", "report", "train_backbone@mine-linear-1"]
    own, mine = csv.DictReader(undisturbed.read("reports/tables/backbones.csv").decode().splitlines())
    assert (own["Name"], mine["Name"], mine["Layers"]) == ("the profile's own", "mine", "blocks 0, -1")
    costs = csv.DictReader(undisturbed.read("reports/tables/backbone_costs.csv").decode().splitlines())
    assert [row["Width"] for row in costs] == ["128", "256"]
    record = json.loads(undisturbed.read("reports/runs/backbones/mine-linear-seed1.json"))
    assert mine["mIoU"] == f"{record['metrics']['miou']:.2f}"
    report = undisturbed.read("reports/report.md").decode()
    assert "figures/backbones/masks.png" in report
    undisturbed.run("git", "checkout", "params.yaml")


def test_changed_params_rerun_only_their_stages_and_the_report(undisturbed):
    changes = ("segmentation.heads.transformer.shared_qk=true", "retrieval.lr=3e-3")
    options = [word for change in changes for word in ("-S", change)]
    result = undisturbed.run("dvc", "exp", "run", *options, "-n", "other")
    assert result.returncode == 0, result.stdout + result.stderr
    ran = re.findall(r"Running stage '(.*?)'", result.stdout)
    assert sorted(ran) == ["check_params", "report", "train_head@transformer-1", "train_retrieval"]
    assert "Training from scratch,3e-3" in undisturbed.read("reports/tables/table4_retrieval.csv").decode()
    compared = undisturbed.run("python", "-m", "stages.compare")
    assert compared.returncode == 0, compared.stderr
    names = [line.split()[0] for line in compared.stdout.splitlines() if line]
    assert "other" in names
    assert all(text in compared.stdout for text in ("shared_qk", "0.003"))
    assert max(map(len, compared.stdout.splitlines())) <= 110
    undisturbed.run("git", "checkout", "params.yaml")


def test_a_wrong_param_names_its_key_and_what_is_allowed(undisturbed):
    result = undisturbed.run("dvc", "exp", "run", "-S", "segmentation.lr=fast")
    assert result.returncode != 0
    assert "params.yaml: segmentation.lr = 'fast'" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr + result.stdout
    undisturbed.run("git", "checkout", "params.yaml")


def test_a_prompt_of_unknown_words_is_named(undisturbed):
    change = "captioning.cells.greedy.prompt=a photo of my dog"
    result = undisturbed.run("dvc", "exp", "run", "-S", change, "caption")
    assert result.returncode != 0
    output = result.stderr + result.stdout
    assert "captioning.cells.greedy.prompt = 'a photo of my dog': my, dog not in the vocabulary" in output
    assert "Traceback" not in output
    undisturbed.run("git", "checkout", "params.yaml")
