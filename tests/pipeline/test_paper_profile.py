"""The paper profile from a server on 127.0.0.1: downloaded, run up to the report, run again without the server."""

import json
import os
import re
import shutil

import pytest
from paper_site import COMMIT, COUNTS, PETS, VITS, PaperSite

NETWORKED = ("data", "checkpoints")  # the two stages that use the network
MODULES = {"data": "stages.data", "checkpoints": "stages.models.checkpoints"}
MANIFESTS = ("data/manifest.parquet", "data/labeled.parquet")


@pytest.fixture(scope="module")
def site():
    with PaperSite() as running:
        yield running


@pytest.fixture(scope="module")
def project(clone_project, site):
    """A clone whose paper profile downloads from the site, without a proxy."""
    clone = clone_project()
    clone.set(**site.params())
    clone.environment |= {"HF_ENDPOINT": site.address, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    clone.environment["HF_HOME"] = str(clone.root / "hf_home")
    return clone


def read_record(project, kind):
    return json.loads(project.read(f"data/fetched/{kind}.json"))


def outputs(project) -> dict[str, bytes]:
    """Return all files that the two networked stages write, by path."""
    folders = [project.root / "data/fetched", project.root / "data/objects"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [project.root / path for path in MANIFESTS]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in files}


def test_everything_is_downloaded_verified_and_extracted(project, site):
    site.fail("/voc/VOCtrainval.tar", times=1, cut=20_000)
    site.fail("/pets/images.tar.gz", times=1, status=503)
    result = project.repro(*NETWORKED)
    assert result.returncode == 0, result.stdout + result.stderr
    assert site.ranges("/voc/VOCtrainval.tar") == [None, "bytes=20000-"]
    assert f"{COUNTS['train']} train, {COUNTS['val']} val images, 21 classes" in result.stdout
    assert f"{PETS['train']} train, {PETS['val']} val images, 4 labels" in result.stdout
    assert read_record(project, "backbone")["revision"] == COMMIT
    assert read_record(project, "classifier")["revision"] == COMMIT
    kinds = ("backbone", "blip", "classifier", "catr")
    assert all(len(read_record(project, kind)["sha256"]) == 64 for kind in kinds)


def test_the_report_needs_no_network(project, site):
    site.stop()
    try:
        result = project.repro()
    finally:
        site.start()
    assert result.returncode == 0, result.stdout + result.stderr
    assert not set(re.findall(r"Running stage '(.*?)'", result.stdout)) & set(NETWORKED)
    report = project.read("reports/report.md").decode()
    assert "Profile `paper`" in report
    assert "left out: " not in report
    for title in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5"):
        assert title in report
    tables = {path.stem for path in (project.root / "reports/tables").iterdir()}
    assert {"classification", "class_token_attention"} <= tables
    # The shrunk params have no row of Tables 3 and 5; theirs are in the comparisons.
    assert {name for name in tables if name.startswith("table")} == {
        "table1_segmentation",
        "table2_captioning",
        "table4_retrieval",
    }
    images = re.findall(r"\]\(((?:figures|pictures)/[^)]+\.png)\)", report)
    assert len(images) > 10
    assert all((project.root / "reports" / path).stat().st_size > 2000 for path in images)
    second = json.loads(project.read("reports/runs/second_captioner/catr.json"))
    assert "/catr/weight.pth#sha256=" in second["inputs"]["backbone"]
    run = json.loads(project.read("reports/runs/segmentation/linear-seed1.json"))
    assert run["inputs"]["backbone"] == VITS[0]
    assert re.fullmatch("[0-9a-f]{64}", run["inputs"]["weights"])


def test_a_second_run_offline_writes_the_same_files(project, site):
    before = outputs(project)
    for name in (*("data/fetched", "data/objects", ".dvc/cache", ".dvc/tmp"), *MANIFESTS):
        path = project.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    count = len(site.requests)
    site.stop()
    try:
        result = project.repro(*NETWORKED)
    finally:
        site.start()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the hub does not answer; using commit" in result.stdout  # for the backbone, which has no revision
    assert outputs(project) == before
    assert len(site.requests) == count


def test_another_backbone_needs_one_param(project):
    result = project.run("dvc", "exp", "run", "-S", f"paper.backbone={VITS[1]}", "train_head@linear-1")
    assert result.returncode == 0, result.stdout + result.stderr
    run = json.loads(project.read("reports/runs/segmentation/linear-seed1.json"))
    assert run["inputs"]["backbone"] == VITS[1]
    assert run["inputs"]["weights"] != read_record(project, "classifier")["sha256"]


def test_catr_captions_instead_of_blip(project):
    project.set(captioning__model="catr", captioning__cells__beam={"type": "greedy", "prompt": "a"})
    result = project.repro("caption_attention")
    assert result.returncode == 0, result.stdout + result.stderr
    run = json.loads(project.read("reports/runs/captioning/greedy.json"))
    assert "/catr/weight.pth#sha256=" in run["inputs"]["backbone"]
    assert run["params"]["model"] == "catr"
    attention = json.loads(project.read("reports/runs/caption_attention/greedy.json"))
    assert attention["metrics"].get("class_token", 0) == 0
    pictures = list((project.root / "reports/pictures/caption_attention").glob("*.png"))
    assert len(pictures) == 2
    assert all(path.stat().st_size > 5000 for path in pictures)


def test_errors_are_one_line(project, site):
    captions = json.loads(site.files["/captions.json"])
    missing = next(iter(captions))
    del captions[missing]
    site.files["/fewer.json"] = json.dumps(captions).encode()
    wrong_hash = f"{site.url('/voc/VOCtrainval.tar')}#sha256={'0' * 64}"
    cases = {
        ("data", "paper__captions"): (site.url("/fewer.json"), f"fewer.json: no caption for {missing}"),
        ("data", "paper__voc_archive"): (
            wrong_hash,
            f"VOCtrainval.tar has sha256 [0-9a-f]{{64}}, expected sha256 {'0' * 64}",
        ),
        ("data", "paper__pets_archives"): ([site.url("/pets/none.tar.gz")], r"none.tar.gz could not be .*404"),
        ("data", "paper__voc_images"): ({"train": 10, "val": 7}, r"val.txt: 6 images; expected 7"),
        ("checkpoints", "paper__backbone"): ("vit_tinny", r"paper.backbone = 'vit_tinny': unknown backbone"),
        ("checkpoints", "paper__blip"): ("nobody/blip", r"paper.blip = 'nobody/blip': 'nobody/blip': no such model"),
    }
    params = project.read("params.yaml")
    for (name, key), (value, message) in cases.items():
        project.set(**{key: value})
        result = project.run("python", "-m", MODULES[name])
        (project.root / "params.yaml").write_bytes(params)
        assert result.returncode == 2, key
        assert re.search(message, result.stderr), (key, result.stderr[-2000:])
        assert "Traceback" not in result.stderr, key
    assert os.environ.get("HF_ENDPOINT") is None
    assert not list((project.root / "data/downloads").rglob("*.tmp"))
