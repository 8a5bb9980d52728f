"""The real pipeline, shrunk to a handful of images, through `dvc repro` in a temporary clone."""

import json
import re
import shutil

import pytest
from mlflow import MlflowClient

TABLE = "reports/tables/table1_segmentation.csv"


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
    assert len(pictures) == 7 + 2 + 2 + 3 + 2 + 2 + 2
    for picture in pictures:
        assert (undisturbed.root / "reports" / picture).stat().st_size > 5000


def test_tables_2_to_5_come_from_runs(undisturbed):
    cell = json.loads(undisturbed.read("reports/runs/captioning/k50_t1.json"))["metrics"]
    rows = undisturbed.read("reports/tables/table2_captioning.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Type", "Greedy search", "Top-K sampling"]
    assert rows[2].split(",")[4] == f"{cell['bleu']:.2f}"
    assert "Beam search,3 beams" in undisturbed.read("reports/tables/table3_captioning_grid.csv").decode()
    record = json.loads(undisturbed.read("reports/runs/retrieval/scratch.json"))
    rows = undisturbed.read("reports/tables/table4_retrieval.csv").decode().splitlines()
    assert rows[2].split(",")[5] == f"{record['metrics']['image_to_text_r_at_1']:.2f}"
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert record["metrics"]["gallery"] == 7


def test_the_classification_table_and_the_pictures_come_from_runs(undisturbed):
    record = json.loads(undisturbed.read("reports/runs/classification/base.json"))
    rows = undisturbed.read("reports/tables/classification.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows] == [
        "Setting",
        "base",
        "accumulated",
    ]  # with other epochs than the report's
    assert rows[1].split(",")[6] == f"{record['metrics']['accuracy']:.2f}"
    assert record["metrics"]["images"] == 20
    shares = json.loads(undisturbed.read("reports/runs/class_attention/pretrained.json"))["metrics"]
    told = undisturbed.read("reports/tables/class_token_attention.csv").decode().splitlines()
    assert told[1].split(",")[:2] == ['"pretrained', ' last block"']
    assert told[1].split(",")[2] == f"{shares['mean_mass']:.1f}"
    words = undisturbed.read("reports/tables/caption_attention.csv").decode().splitlines()
    assert words[-1].startswith('"Other words')
    captioned = sorted(path.name for path in (undisturbed.root / "reports/pictures/caption_attention").iterdir())
    assert captioned == ["val_00000.png", "val_00006.png"]


def test_any_image_is_classified_and_looked_at(undisturbed):
    images = "data/objects/JPEGImages"
    told = undisturbed.run("python", "-m", "stages.classification.predict", images, "--setting", "accumulated")
    assert told.returncode == 0, told.stderr
    assert "predictions.csv: 40 images, by data/models/classification/accumulated/best.safetensors" in told.stdout
    assert undisturbed.read("predictions.csv").decode().startswith("filename,label\n")
    for what in ("class-token", "caption"):
        told = undisturbed.run("python", "-m", "stages.attention.look", what, f"{images}/star_1.jpg")
        assert told.returncode == 0, told.stderr
        picture = told.stdout.split()[-1]
        assert picture == f"reports/look/star_1.jpg.{what.replace('-', '_')}.png"
        assert (undisturbed.root / picture).stat().st_size > 5000
    missing = undisturbed.run("python", "-m", "stages.attention.look", "caption", "nowhere.jpg")
    assert (missing.returncode, missing.stderr.strip().splitlines()[-1]) == (2, "look: nowhere.jpg: missing")
    assert not undisturbed.run("git", "ls-files", "--others", "--exclude-standard", "reports/look").stdout


def test_the_shipped_checkpoints_are_not_made_again(undisturbed):
    assert not {"pretrain", "pretrain_blip"} & set(json.loads(undisturbed.read("reports/timings.json")))


def test_a_fresh_clone_of_all_results_still_tells_mlflow_of_them(undisturbed):
    """What is committed is skipped where it comes out the same; the store and what DVC caches are not there."""
    for name in ("mlflow.db", "data/report_runs.json"):
        (undisturbed.root / name).unlink()
    cached = undisturbed.root / ".dvc/cache"
    cached.rename(cached.with_name("away"))
    try:
        made = undisturbed.run("dvc", "repro", "-s", "report")
    finally:
        shutil.rmtree(cached, ignore_errors=True)
        cached.with_name("away").rename(cached)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "Running stage 'report'" in made.stdout
    assert (undisturbed.root / "mlflow.db").is_file()


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


def test_changed_knobs_touch_their_stages_and_the_report_alone(undisturbed):
    changes = ("segmentation.heads.transformer.shared_qk=true", "retrieval.lr=3e-3")
    asked = [word for change in changes for word in ("-S", change)]
    made = undisturbed.run("dvc", "exp", "run", *asked, "-n", "other")
    assert made.returncode == 0, made.stdout + made.stderr
    ran = re.findall(r"Running stage '(.*?)'", made.stdout)
    assert sorted(ran) == ["report", "train_head@transformer", "train_retrieval"]
    assert "Training from scratch,3e-3" in undisturbed.read("reports/tables/table4_retrieval.csv").decode()
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
    assert {run.data.tags["dvc.stage"] for run in found} == {
        "train_head@linear",
        "train_head@transformer",
        "caption",
        "train_retrieval",
        "train_retrieval_grid",
        "finetune@base",
        "finetune@accumulated",
        "position_similarity",
        "class_attention",
        "caption_attention",
    }
    assert len(found) == 2 + 3 + 3 + 1 + 2 + 1 + 2 + 1


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


def test_images_are_found_by_a_sentence_and_captions_by_an_image(undisturbed):
    search = ("python", "-m", "stages.retrieval.search")
    told = undisturbed.run(*search, "a red dog")
    assert told.returncode == 0, told.stderr
    assert "unknown to data/checkpoints/blip_scenes: dog" in told.stdout
    assert len(re.findall(r"^ ?\d+  -?\d\.\d{3}  val_0000\d$", told.stdout, re.MULTILINE)) == 7  # all there are
    assert (undisturbed.root / "reports/search.png").stat().st_size > 5000
    told = undisturbed.run(*search, "data/scenes/JPEGImages/val_00000.jpg", "--run", "provided")
    assert told.returncode == 0, told.stderr
    assert len(re.findall(r"^ ?\d+  -?\d\.\d{3}  \w+ \w+", told.stdout, re.MULTILINE)) == 7
    missing = undisturbed.run(*search, "nowhere.jpg")
    assert missing.returncode == 2
    assert missing.stderr.strip() == "search: nowhere.jpg: missing"


def test_a_wrong_param_stops_with_its_key_and_what_is_allowed(undisturbed):
    made = undisturbed.run("dvc", "exp", "run", "-S", "segmentation.lr=fast")
    assert made.returncode != 0
    assert "params.yaml: segmentation.lr = 'fast'" in made.stderr + made.stdout
    assert "Traceback" not in made.stderr + made.stdout
    undisturbed.run("git", "checkout", "params.yaml")


def test_a_prompt_of_unknown_words_is_named(undisturbed):
    asked = "captioning.cells.greedy.prompt=a photo of my dog"
    made = undisturbed.run("dvc", "exp", "run", "-S", asked)
    assert made.returncode != 0
    told = made.stderr + made.stdout
    assert "captioning.cells.greedy.prompt = 'a photo of my dog': my, dog not in the vocabulary" in told
    assert "Traceback" not in told
    undisturbed.run("git", "checkout", "params.yaml")
