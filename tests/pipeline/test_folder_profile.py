"""Real photographs through the real pipeline, with the profile `folder`."""

import json
import shutil

import pytest
from conftest import ROOT

STREET = ROOT.parent / "shared/data/street"


@pytest.fixture
def street(tmp_path):
    """A copy of a few of the street photographs."""
    if not STREET.is_dir():
        pytest.skip("the street photographs are not available")
    folder = tmp_path / "street"
    shutil.copytree(STREET, folder)
    for split, count in (("train", 12), ("val", 6)):
        id_list = folder / f"ImageSets/Segmentation/{split}.txt"
        id_list.write_text("\n".join(id_list.read_text().split()[:count]) + "\n")
    return folder


def test_real_photographs_run_end_to_end(clone_project, street):
    project = clone_project()
    result = project.run("dvc", "exp", "run", "-S", "profile=folder", "-S", f"folder.path={street}")
    assert result.returncode == 0, result.stdout + result.stderr
    report = project.read("reports/report.md").decode()
    assert "12 train, 6 val; 320x240 pixels" in report
    assert "bicyclist" in report
    assert "Tables 2 and 3 are left out" in report
    assert "Tables 4 and 5 are left out" in report
    assert "has no captions" in report
    assert "The table is left out: " in report and "has no labels (labels.csv)" in report
    assert "Attention of the class token, pretrained" in report  # pictures need no labels
    assert "Not measured: there are no masks with a class `background` and an object." in report


def test_a_folder_with_its_own_captions_and_labels(clone_project, street):
    ids = [path.stem for path in (street / "JPEGImages").iterdir()]
    labels = [f"{image_id},{('near', 'far')[number % 2]}" for number, image_id in enumerate(sorted(ids))]
    (street / "labels.csv").write_text("\n".join(["image_id,label", *labels, "unlisted,other"]) + "\n")
    (street / "captions.json").write_text(json.dumps(dict.fromkeys(ids, "a red bus at the left of a street")))
    project = clone_project()
    project.set(profile="folder", folder__path=str(street))
    result = project.repro("caption", "train_retrieval", "finetune@base-1", "class_attention")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "22.2% of the captions' words are unknown to data/checkpoints/blip_scenes: bus, street" in result.stdout
    run = json.loads(project.read("reports/runs/retrieval/finetuned-seed1.json"))
    assert (run["inputs"]["unknown_share"], run["inputs"]["unknown_words"]) == ("0.2222", "bus street")
    cell = json.loads(project.read("reports/runs/captioning/greedy.json"))["metrics"]
    assert cell["images"] == 6
    assert "class_named" not in cell  # only generated scenes list their objects
    tuned = json.loads(project.read("reports/runs/classification/base-seed1.json"))
    assert list(tuned["details"]["class_accuracy"]) == ["far", "near"]
    assert (tuned["metrics"]["images"], tuned["params"]["size"]) == (6, 160)
    assert (project.root / "reports/pictures/class_attention/finetuned.png").stat().st_size > 5000
