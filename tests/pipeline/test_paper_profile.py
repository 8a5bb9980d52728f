"""The paper profile from a server of our own at 127.0.0.1: downloaded, run to the report, run again without it."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from paper_site import COMMIT, COUNTS, PETS, VITS, PaperSite

NETWORKED = ("data", "checkpoints")  # the two stages that ask a network
MANIFESTS = ("data/manifest.parquet", "data/labeled.parquet")


@pytest.fixture(scope="module")
def site():
    with PaperSite() as running:
        yield running


@pytest.fixture(scope="module")
def project(clone_project, site):
    """A clone whose paper profile downloads from the site; the proxy of this machine must not stand between."""
    made = clone_project()
    made.set(**site.params())
    made.environment |= {"HF_ENDPOINT": site.address, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    made.environment["HF_HOME"] = str(made.root / "hf_home")
    return made


def facts(project, kind):
    return json.loads(project.read(f"data/fetched/{kind}.json"))


def outputs(project) -> dict[str, bytes]:
    """Everything that the two networked stages make, by path."""
    folders = [project.root / "data/fetched", project.root / "data/objects"]
    files = [one for folder in folders for one in folder.rglob("*") if one.is_file()]
    files += [project.root / path for path in MANIFESTS]
    return {str(one.relative_to(project.root)): one.read_bytes() for one in files}


def test_everything_is_downloaded_checked_and_unpacked(project, site):
    site.fail("/voc/VOCtrainval.tar", times=1, cut=20_000)  # resumed
    site.fail("/pets/images.tar.gz", times=1, status=503)  # asked again
    made = project.repro(*NETWORKED)
    assert made.returncode == 0, made.stdout + made.stderr
    assert site.ranges("/voc/VOCtrainval.tar") == [None, "bytes=20000-"]
    assert f"{COUNTS['train']} train, {COUNTS['val']} val images, 21 classes" in made.stdout
    assert f"{PETS['train']} train, {PETS['val']} val images, 4 labels" in made.stdout
    assert facts(project, "backbone")["revision"] == facts(project, "classifier")["revision"] == COMMIT
    assert facts(project, "catr") is None  # nobody captions with it
    assert site.count("/catr/weight.pth") == 0
    assert all(len(facts(project, kind)["sha256"]) == 64 for kind in ("backbone", "blip", "classifier"))


def test_the_report_is_made_without_a_network_from_what_was_downloaded(project, site):
    site.stop()
    try:
        made = project.repro()
    finally:
        site.start()
    assert made.returncode == 0, made.stdout + made.stderr
    assert not set(re.findall(r"Running stage '(.*?)'", made.stdout)) & set(NETWORKED)
    report = project.read("reports/report.md").decode()
    assert "Profile `paper`" in report
    assert "left out: " not in report
    for title in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5"):
        assert title in report
    made = {path.stem for path in (project.root / "reports/tables").iterdir()}
    assert {"classification", "class_token_attention"} <= {*made}
    assert len([name for name in made if name.startswith("table")]) == 5
    drawn = re.findall(r"\]\(((?:figures|pictures)/[^)]+\.png)\)", report)
    assert len(drawn) > 10
    assert all((project.root / "reports" / path).stat().st_size > 2000 for path in drawn)
    run = json.loads(project.read("reports/runs/segmentation/linear.json"))
    assert run["inputs"]["backbone"] == VITS[0]
    assert re.fullmatch("[0-9a-f]{64}", run["inputs"]["weights"])


def test_again_offline_everything_comes_out_as_it_was(project, site):
    before = outputs(project)
    for path in (*("data/fetched", "data/objects", ".dvc/cache", ".dvc/tmp"), *MANIFESTS):
        whole = project.root / path
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    asked = len(site.requests)
    site.stop()
    try:
        made = project.repro(*NETWORKED)
    finally:
        site.start()
    assert made.returncode == 0, made.stdout + made.stderr
    assert "the hub does not answer; using commit" in made.stdout  # the one without a revision
    assert outputs(project) == before
    assert len(site.requests) == asked


def test_another_backbone_is_one_line(project):
    made = project.run("dvc", "exp", "run", "-S", f"paper.backbone={VITS[1]}", "train_head@linear")
    assert made.returncode == 0, made.stdout + made.stderr
    run = json.loads(project.read("reports/runs/segmentation/linear.json"))
    assert run["inputs"]["backbone"] == VITS[1]
    assert run["inputs"]["weights"] != facts(project, "classifier")["sha256"]


def test_catr_captions_in_blips_place(project):
    project.set(captioning__model="catr", captioning__cells__beam={"type": "greedy", "prompt": "a"})
    made = project.repro("caption_attention")
    assert made.returncode == 0, made.stdout + made.stderr
    run = json.loads(project.read("reports/runs/captioning/greedy.json"))
    assert "/catr/weight.pth#sha256=" in run["inputs"]["backbone"]
    assert run["params"]["model"] == "catr"
    looked = json.loads(project.read("reports/runs/caption_attention/greedy.json"))
    assert looked["metrics"].get("class_token", 0) == 0
    pictures = list((project.root / "reports/pictures/caption_attention").glob("*.png"))
    assert len(pictures) == 2
    assert all(one.stat().st_size > 5000 for one in pictures)


def test_faults_end_in_one_line(project, site):
    content = site.files["/captions.json"]
    captions = json.loads(content)
    missing = next(iter(captions))
    del captions[missing]
    wrong = f"{site.url('/voc/VOCtrainval.tar')}#sha256={'0' * 64}"
    faults = {
        ("data", "paper__captions"): (site.url("/fewer.json"), f"fewer.json: no caption for {missing}"),
        ("data", "paper__voc_archive"): (
            wrong,
            f"VOCtrainval.tar has sha256 [0-9a-f]{{64}}, expected sha256 {'0' * 64}",
        ),
        ("data", "paper__pets_archives"): ([site.url("/pets/none.tar.gz")], r"none.tar.gz could not be .*404"),
        ("data", "paper__voc_images"): ({"train": 10, "val": 7}, r"val.txt: 6 images; expected 7"),
        ("checkpoints", "paper__backbone"): ("vit_tinny", r"paper.backbone = 'vit_tinny': unknown backbone"),
        ("checkpoints", "paper__blip"): ("nobody/blip", r"paper.blip = 'nobody/blip': 'nobody/blip': no such model"),
    }
    site.files["/fewer.json"] = json.dumps(captions).encode()
    kept = project.read("params.yaml")
    for (name, key), (value, told) in faults.items():
        project.set(**{key: value})
        made = project.run("python", "-m", f"stages.{name}")  # as DVC runs it
        (project.root / "params.yaml").write_bytes(kept)
        assert made.returncode == 2, key
        assert re.search(told, made.stderr), (key, made.stderr[-2000:])
        assert "Traceback" not in made.stderr, key
    assert os.environ.get("HF_ENDPOINT") is None
    assert not list(Path(project.root / "data/downloads").rglob("*.tmp"))
