"""Real photographs through the real pipeline, as a folder of the user's own."""

import json
import shutil

import pytest
from conftest import ROOT

STREET = ROOT.parent / "shared/data/street"


@pytest.fixture
def street(tmp_path):
    """A few of the street photographs, as a folder of its own."""
    if not STREET.is_dir():
        pytest.skip("the street photographs are not beside the project")
    own = tmp_path / "street"
    shutil.copytree(STREET, own)
    for split, count in (("train", 12), ("val", 6)):
        listed = own / f"ImageSets/Segmentation/{split}.txt"
        listed.write_text("\n".join(listed.read_text().split()[:count]) + "\n")
    return own


def test_real_photographs_run_end_to_end(clone_project, street):
    project = clone_project()
    made = project.run("dvc", "exp", "run", "-S", "profile=folder", "-S", f"folder.path={street}")
    assert made.returncode == 0, made.stdout + made.stderr
    report = project.read("reports/report.md").decode()
    assert "12 train, 6 val; 320x240 pixels" in report
    assert "bicyclist" in report
    assert "Tables 2 and 3 are left out" in report
    assert "Tables 4 and 5 are left out" in report
    assert "has no captions" in report
    assert "The table is left out: " in report and "has no labels (labels.csv)" in report
    assert "Attention of the class token, pretrained" in report  # pictures need no labels
    assert "Not measured: no masks tell objects from a class `background`." in report


def test_a_folder_with_captions_and_labels_of_its_own(clone_project, street):
    ids = [one.stem for one in (street / "JPEGImages").iterdir()]
    labels = [f"{image_id},{('near', 'far')[number % 2]}" for number, image_id in enumerate(sorted(ids))]
    (street / "labels.csv").write_text("\n".join(["image_id,label", *labels, "elsewhere,unseen"]) + "\n")
    (street / "captions.json").write_text(json.dumps(dict.fromkeys(ids, "a red bus at the left of a street")))
    project = clone_project()
    project.set(profile="folder", folder__path=str(street))
    made = project.repro("caption", "train_retrieval", "finetune@base", "class_attention")
    assert made.returncode == 0, made.stdout + made.stderr
    assert "22.2% of the captions' words are unknown to data/checkpoints/blip_scenes: bus, street" in made.stdout
    run = json.loads(project.read("reports/runs/retrieval/finetuned.json"))
    assert (run["inputs"]["unknown_share"], run["inputs"]["unknown_words"]) == ("0.2222", "bus street")
    cell = json.loads(project.read("reports/runs/captioning/greedy.json"))["metrics"]
    assert cell["images"] == 6
    assert "class_named" not in cell  # only generated scenes tell what they show
    tuned = json.loads(project.read("reports/runs/classification/base.json"))
    assert list(tuned["metrics"]["class_accuracy"]) == ["far", "near"]
    assert (tuned["metrics"]["images"], tuned["params"]["size"]) == (6, 160)
    assert (project.root / "reports/pictures/class_attention/finetuned.png").stat().st_size > 5000
