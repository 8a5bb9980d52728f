"""Models come to this machine from files, addresses and a hub of our own, once, and are found again without it."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import paper_site
import pytest
from conftest import ROOT
from huggingface_hub import constants
from loopback import Loopback
from paper_site import COMMIT, hub

from stages.core.stage import InputError
from stages.fetch import download
from stages.models import catr, vit
from stages.models.checkpoints.__main__ import requested_models
from stages.models.checkpoints.hub import download_model, find_weights
from stages.models.checkpoints.record import Checkpoint, read_checkpoint, record_path, write_checkpoint
from stages.models.checkpoints.resolver import CheckpointResolver, file_sha256
from stages.models.checkpoints.vits import load_vit
from stages.params.experiment import load_experiment

LATER = COMMIT[::-1]
SAFE, BIN = b"safe" * 10_000, b"bin" * 10_000
BOTH = {
    "model.safetensors": SAFE,
    "pytorch_model.bin": BIN,
    "config.json": b"{}",
    "vocab.txt": b"a\n",
    "README.md": b"not wanted",
    "tf_model.h5": b"not wanted",
}
HELD = {
    "lab/both": BOTH,
    "lab/older": {"pytorch_model.bin": BIN, "config.json": b"{}"},
    "lab/none": {"tf_model.h5": b"", "config.json": b"{}"},
    "gated/model": {"model.safetensors": SAFE},
}


class Hub(Loopback):
    """`paper_site`'s hub at `commit`, with other answers to some paths."""

    def __init__(self):
        super().__init__({}, fallback=self.answer)
        self.repositories, self.commit = dict(HELD), COMMIT
        self.instead: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def answer(self, method, path):
        if path in self.instead:
            return self.instead[path]
        status, headers, body = hub(self.repositories)(method, path.replace(self.commit, COMMIT))
        headers = {name: value.replace(COMMIT, self.commit) for name, value in headers.items()}
        return status, headers, body.replace(COMMIT.encode(), self.commit.encode())

    def asked(self) -> list[str]:
        """What was asked for, but for who uses the client."""
        return [f"{one.method} {one.path}" for one in self.seen if one.path != "/api/agent-harnesses"]

    def resumable(self, path: str, content: bytes) -> None:
        """Answer requests for parts of a file, too."""
        self.files[path] = content
        self.headers[path] = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A hub that Hugging Face's client asks in place of its own, without waiting between attempts."""
    with Hub() as running:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()  # made anew, with the proxies of this environment
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


def refusal(call, *asked, **settings):
    with pytest.raises(InputError) as caught:
        call(*asked, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> set[str]:
    """The files of a model, but for the client's own notes."""
    found = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    return {one for one in found if not one.startswith(".cache")}


def file_of(model: str, name: str, commit: str = COMMIT) -> str:
    return f"/{model}/resolve/{commit}/{name}"


# The hub


def test_only_wanted_files_and_the_better_weights_are_fetched(site, downloads):
    folder, commit = download_model("lab/both", None, downloads, ["*.json", "vocab.txt"])
    assert commit == COMMIT
    assert files(folder) == {"model.safetensors", "config.json", "vocab.txt"}
    assert find_weights(folder).read_bytes() == SAFE
    assert not [one for one in site.asked() if one.endswith((".bin", ".h5", ".md"))]
    folder, _ = download_model("lab/older", None, downloads, ["*.json"])
    assert files(folder) == {"pytorch_model.bin", "config.json"}
    assert find_weights(folder).read_bytes() == BIN
    assert site.count(file_of("lab/both", "model.safetensors")) == 1


def test_a_models_weights_may_have_a_name_of_their_own(site, downloads):
    site.repositories["lab/own"] = {"model.safetensors": SAFE, "open.bin": BIN, "config.json": b"{}"}
    folder, _ = download_model("lab/own", None, downloads, ["config.json"], weights=("open.bin",))
    assert files(folder) == {"open.bin", "config.json"}


def test_a_pinned_commit_is_asked_for_once(site, downloads):
    first = download_model("lab/both", COMMIT, downloads, ["*.json"])
    asked = len(site.seen)
    assert download_model("lab/both", COMMIT, downloads, ["*.json"]) == first
    assert len(site.seen) == asked
    site.stop()
    assert download_model("lab/both", COMMIT, downloads, ["*.json"]) == first


def test_a_commit_that_the_branch_brought_needs_no_request(site, downloads):
    first = download_model("lab/both", None, downloads, ["*.json"])
    asked = len(site.seen)
    assert download_model("lab/both", COMMIT, downloads, ["*.json"]) == first
    assert len(site.seen) == asked


def test_a_branch_is_followed_and_unchanged_files_are_not_sent_again(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    download_model("lab/both", None, downloads, ["*.json"])
    assert site.count(file_of("lab/both", "model.safetensors")) == 1
    site.commit = LATER
    site.repositories["lab/both"] = BOTH | {"model.safetensors": b"newer"}
    folder, commit = download_model("lab/both", None, downloads, ["*.json"])
    assert commit == LATER
    assert find_weights(folder).read_bytes() == b"newer"


@pytest.mark.parametrize("stopped", [True, False])
def test_without_the_hub_a_branch_is_what_it_was(site, downloads, capsys, stopped):
    first = download_model("lab/both", None, downloads, ["*.json"])
    if stopped:
        site.stop()
    else:
        site.instead["/api/models/lab/both"] = (503, {}, b"down")
    assert download_model("lab/both", None, downloads, ["*.json"]) == first
    assert f"the hub does not answer; used as it was brought before, at {COMMIT}" in capsys.readouterr().out


@pytest.mark.parametrize("revision", [None, "v1.0", COMMIT])
def test_without_the_hub_and_anything_brought_the_line_tells_what_to_do(site, downloads, revision):
    site.stop()
    told = refusal(download_model, "lab/both", revision, downloads, ["*.json", "vocab.txt"])
    folder = downloads / "hub/lab--both" / (revision or "main")
    assert "'lab/both' could not be fetched ([Errno 111] Connection refused)" in told
    assert "download model.safetensors or pytorch_model.bin, *.json, vocab.txt" in told
    assert f"{site.address}/lab/both at revision {revision or 'main'}" in told
    assert f"put them into {folder}" in told
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        (folder / name).write_bytes(SAFE)
    assert download_model("lab/both", revision, downloads, ["*.json", "vocab.txt"]) == (folder, revision or "main")


def test_what_was_brought_of_another_revision_does_not_stand_in(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.stop()
    assert "at revision v2" in refusal(download_model, "lab/both", "v2", downloads, ["*.json"])


@pytest.mark.parametrize(
    ("name", "revision", "told"),
    [
        ("lab/nothing", None, "'lab/nothing': no such model on ADDRESS/lab/nothing"),
        ("lab/nothing", COMMIT, "'lab/nothing': no such model on ADDRESS/lab/nothing"),
        ("lab/both", "v9", "'lab/both' has no revision 'v9' on ADDRESS/lab/both"),
        ("lab/both", LATER, f"'lab/both' has no revision '{LATER}' on ADDRESS/lab/both"),
        ("lab/none", None, "'lab/none' on the hub has no model.safetensors or pytorch_model.bin"),
    ],
)
def test_what_the_hub_has_not_is_one_line(site, downloads, name, revision, told):
    assert refusal(download_model, name, revision, downloads, ["*.json"]) == told.replace("ADDRESS", site.address)
    assert not list(downloads.rglob("main.txt"))


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/api/models/gated/model", file_of("gated/model", "model.safetensors")])
def test_a_license_to_accept_is_one_line(site, downloads, status, path):
    """The true hub tells all of a gated model, and refuses its files."""
    site.instead[path] = (status, {"X-Error-Code": "GatedRepo"}, b"{}")
    told = refusal(download_model, "gated/model", None, downloads, ["*.json"])
    assert told == f"'gated/model' wants its license accepted on {site.address}/gated/model, then `hf auth login`"
    assert not list(downloads.rglob("main.txt"))


@pytest.mark.parametrize(("status", "reason"), [(401, "401 Unauthorized"), (403, "403 Forbidden"), (500, "500 Inter")])
def test_other_refusals_are_one_line(site, downloads, status, reason):
    site.instead["/api/models/lab/both"] = (status, {}, b"<html>many\nlines</html>")
    told = refusal(download_model, "lab/both", None, downloads, ["*.json"])
    assert reason in told and "put them into" in told


def test_a_download_that_is_cut_off_is_resumed(site, downloads, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # the client loses up to one, 10 MB
    path = file_of("lab/both", "model.safetensors")
    site.resumable(path, SAFE)
    site.fault(path, times=1, cut=30_000)
    folder, _ = download_model("lab/both", None, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFE
    assert site.ranges(path) == [None, "bytes=30000-"]


def test_a_download_that_is_cut_off_for_good_is_one_line_and_counts_for_nothing(site, downloads):
    path = file_of("lab/both", "model.safetensors")
    site.fault(path, times=6, cut=20_000)
    told = refusal(download_model, "lab/both", None, downloads, ["*.json"])
    assert "'lab/both' could not be fetched (peer closed connection" in told
    assert not list(downloads.rglob("main.txt"))
    assert "model.safetensors" not in files(downloads / f"hub/lab--both/{COMMIT}")
    site.stop()
    refusal(download_model, "lab/both", None, downloads, ["*.json"])  # half a model is none without the hub, too
    site.start()
    folder, _ = download_model("lab/both", None, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFE


def test_more_files_of_a_pinned_commit_are_fetched(site, downloads):
    """A vocabulary, then a BLIP of the same repository."""
    download_model("lab/both", COMMIT, downloads, ["vocab.txt"], ())
    folder, _ = download_model("lab/both", COMMIT, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFE


def test_weights_of_another_revision_do_not_stay(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.commit, site.repositories["lab/both"] = LATER, HELD["lab/older"]
    folder, commit = download_model("lab/both", LATER, downloads, ["*.json"])
    assert commit == LATER
    assert find_weights(folder).read_bytes() == BIN


def test_half_an_update_is_not_taken_for_what_was_before(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.commit, site.repositories["lab/both"] = LATER, BOTH | {"config.json": b"[]", "model.safetensors": SAFE * 2}
    site.fault(file_of("lab/both", "model.safetensors", LATER), cut=20_000)
    folder, commit = download_model("lab/both", None, downloads, ["*.json"])
    assert commit == COMMIT
    assert (folder / "config.json").read_bytes() == b"{}"


def test_old_weights_are_never_told_as_a_newer_commits(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.commit, site.repositories["lab/both"] = LATER, BOTH | {"model.safetensors": b"newer"}
    site.instead[f"/api/models/lab/both/tree/{LATER}"] = (500, {}, b"down")
    folder, commit = download_model("lab/both", None, downloads, ["*.json"])
    assert (commit, find_weights(folder).read_bytes()) == (COMMIT, SAFE)


def test_a_page_that_is_no_hubs_answer_counts_as_none(site, downloads):
    """A hotel's page to log in at, or a proxy's."""
    first = download_model("lab/both", None, downloads, ["*.json"])
    site.instead["/api/models/lab/both"] = (200, {"Content-Type": "text/html"}, b"<html>welcome</html>")
    assert download_model("lab/both", None, downloads, ["*.json"]) == first


# The shelf


@pytest.fixture(scope="module")
def contents():
    """Small checkpoints of the true layouts, and a vocabulary that is theirs."""
    return {
        "vit": paper_site.vit(paper_site.VITS[0]),
        "blip": paper_site.blip(),
        "catr": paper_site.catr(),
        "vocab": paper_site.vocabulary(),
    }


@pytest.fixture
def shelf(site, downloads, contents):
    site.repositories[f"timm/{paper_site.VITS[0]}"] = {"model.safetensors": contents["vit"], "config.json": b"{}"}
    site.repositories["bert/words"] = {"vocab.txt": contents["vocab"], "pytorch_model.bin": BIN}
    return CheckpointResolver(downloads, vocabulary=f"bert/words@{COMMIT}")


def written(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_timm_vit_comes_from_its_repository_and_loads_from_there(shelf, site, contents):
    name = paper_site.VITS[0]
    for source in (name, f"{name}@{COMMIT}"):
        found = shelf.vit(source)
        assert (found.source, found.sha256, found.revision) == (source, sha256(contents["vit"]), COMMIT)
    site.stop()
    backbone = vit.load(found.source, found.file)
    assert (backbone.dim, len(backbone.vit.blocks)) == (64, 6)
    assert shelf.vit(source) == found


def test_a_vit_in_a_file_stays_where_it_is(shelf, site, tmp_path):
    path = written(tmp_path / "mine.pth", b"weights")
    assert shelf.vit(path) == Checkpoint(path, path, sha256(b"weights"))
    assert not site.seen


def test_an_address_is_downloaded_once_and_checked(shelf, site, downloads, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    site.files["/mine.pth"] = b"weights"
    source = f"{site.url('/mine.pth')}#sha256={sha256(b'weights')}"
    found = shelf.vit(source)
    assert (found.file, found.sha256) == (downloads / "mine.pth", sha256(b"weights"))
    assert shelf.vit(source) == found
    assert site.count("/mine.pth") == 1
    told = refusal(shelf.vit, f"{site.url('/other.pth')}#sha256={'0' * 64}")
    assert "404" in told and "0" * 64 in told and str(downloads / "other.pth") in told


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("vit", "nowhere.pth", "no such file"),
        ("vit", "vit_tinny", "unknown backbone 'vit_tinny'.*such as .*vit_"),
        ("vit", "vit_small_patch16_224.nobody", "Invalid pretrained tag .nobody.*There are: vit_small_patch16_224"),
        ("blip", "nowhere.pth", "no such file"),
        ("blip", "blip_scenes", "no such folder; expected one, OWNER/NAME on the hub, or an original checkpoint"),
        ("blip", "data/checkpoints/blip_scenes", "no such folder"),
        ("blip", "lab/none", "'lab/none' on the hub has no model.safetensors"),
        ("catr", "nowhere.pth", "no such file"),
        ("catr", "lab/both", "expected a CATR checkpoint's file or address"),
    ],
)
def test_sources_of_no_model_are_one_line(shelf, tmp_path, monkeypatch, kind, source, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told):
        getattr(shelf, kind)(source)


def test_a_blip_is_a_folder_or_a_repository(shelf, site, tmp_path):
    folder = tmp_path / "ours"
    written(folder / "pytorch_model.bin", BIN)
    assert shelf.blip(str(folder)) == Checkpoint(str(folder), str(folder), sha256(BIN))
    written(folder / "model.safetensors", SAFE)
    assert shelf.blip(str(folder)).sha256 == sha256(SAFE)
    assert not site.seen
    found = shelf.blip("lab/both@main")
    assert (found.sha256, found.revision) == (sha256(SAFE), COMMIT)
    assert files(found.file) == {"model.safetensors", "config.json", "vocab.txt"}
    (tmp_path / "empty").mkdir()
    told = refusal(shelf.blip, str(tmp_path / "empty"))
    assert told == f"{tmp_path / 'empty'} holds no model.safetensors or pytorch_model.bin"


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_an_original_checkpoint_is_converted_once(shelf, site, contents, tmp_path, capsys, kind):
    bring, path = getattr(shelf, kind), written(tmp_path / "weight.pth", contents[kind])
    found = bring(path)
    assert found.sha256 == sha256(contents[kind])  # of what is published, not of what was made of it
    assert capsys.readouterr().out.count(": converting") == 1
    made = {one: one.stat().st_mtime_ns for one in found.file.iterdir()}
    site.stop()  # nor is the vocabulary asked for again
    assert bring(path) == found
    assert {one: one.stat().st_mtime_ns for one in found.file.iterdir()} == made
    assert "converting" not in capsys.readouterr().out
    moved = written(tmp_path / "elsewhere/weight.pth", contents[kind])
    assert bring(moved) == replace(found, source=moved)
    find_weights(found.file).unlink()  # as a conversion that was killed leaves it
    assert bring(path) == found
    assert find_weights(found.file).is_file()
    assert "converting" in capsys.readouterr().out


def test_another_checkpoint_of_the_same_name_is_converted_anew(shelf, contents, tmp_path):
    first = shelf.catr(written(tmp_path / "weight.pth", contents["catr"]))
    other = shelf.catr(written(tmp_path / "weight.pth", paper_site.catr()))
    assert first.path != other.path
    assert file_sha256(first.file / catr.WEIGHTS) != file_sha256(other.file / catr.WEIGHTS)
    assert catr.load(other.file / catr.WEIGHTS).config.vocabulary == paper_site.words()


def test_another_vocabulary_is_converted_anew(shelf, contents, tmp_path):
    path = written(tmp_path / "weight.pth", contents["catr"])
    shelf.catr(path)
    words = contents["vocab"].replace(b"\ndog\n", b"\nyak\n")
    found = replace(shelf, vocabulary=written(tmp_path / "vocab.txt", words)).catr(path)
    assert "yak" in catr.load_tokenizer(found.file).get_vocab()


@pytest.mark.parametrize(
    ("kind", "count"), [("blip", "makes COUNT tokens with BLIP's two"), ("catr", "has COUNT word")]
)
def test_a_vocabulary_of_another_size_is_one_line(shelf, contents, tmp_path, kind, count):
    words = written(tmp_path / "vocab.txt", contents["vocab"] + b"more\n")
    told = refusal(getattr(replace(shelf, vocabulary=words), kind), written(tmp_path / "w.pth", contents[kind]))
    more = paper_site.words() + 1 + 2 * (kind == "blip")
    assert f"vocab.txt {count.replace('COUNT', str(more))}" in told
    assert "w.pth" in told and f"embeds {more - 1}" in told
    assert not list((shelf.downloads / "converted").rglob("model.safetensors"))


@pytest.mark.parametrize("vocabulary", ["", "bert", "nowhere/vocab.txt/here"])
def test_a_vocabulary_that_is_nowhere_is_one_line(shelf, contents, tmp_path, vocabulary):
    told = refusal(replace(shelf, vocabulary=vocabulary).catr, written(tmp_path / "w.pth", contents["catr"]))
    assert told == f"vocabulary = '{vocabulary}': expected a vocab.txt, or OWNER/NAME on the hub"


def test_a_repository_without_a_vocabulary_is_one_line(shelf, contents, tmp_path):
    path = written(tmp_path / "w.pth", contents["catr"])
    assert "vocab.txt" in refusal(replace(shelf, vocabulary="lab/older").catr, path)


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_a_file_of_something_else_is_one_line(shelf, tmp_path, kind):
    told = refusal(getattr(shelf, kind), written(tmp_path / "w.pth", b"<html>not found</html>"))
    assert "w.pth is no file of tensors" in told


# What was brought is kept on record


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_record_is_read_by_who_asks_for_its_source(here):
    made = Checkpoint("a/b@main", "weights.pth", "0" * 64, COMMIT)
    written(here / "weights.pth", b"x")
    write_checkpoint("blip", made)
    assert read_checkpoint("blip", "a/b@main") == made
    assert made.file.is_file()


def test_a_record_of_another_source_is_refused(here):
    written(here / "weights.pth", b"x")
    write_checkpoint("blip", Checkpoint("a/b", "weights.pth", "0" * 64))
    told = refusal(read_checkpoint, "blip", "a/c")
    assert told == "data/fetched/blip.json holds 'a/b', not 'a/c'; run `dvc repro checkpoints`"


def test_no_record_and_one_of_nothing_are_refused_alike(here):
    missing = refusal(read_checkpoint, "catr", "a/c")
    write_checkpoint("catr", None)
    assert record_path("catr").is_file()
    told = "data/fetched/catr.json holds nothing, not 'a/c'; run `dvc repro checkpoints`"
    assert missing == refusal(read_checkpoint, "catr", "a/c") == told


def test_a_file_that_is_gone_is_named(here):
    write_checkpoint("backbone", Checkpoint("a", "data/downloads/w.pth", "0" * 64))
    told = refusal(read_checkpoint, "backbone", "a")
    assert told == "data/downloads/w.pth is gone, where 'a' lay; run `dvc repro -f checkpoints`"


def test_a_vit_that_cannot_be_loaded_names_its_param(here):
    written(here / "w.pth", b"<html>")
    write_checkpoint("classifier", Checkpoint("w.pth", "w.pth", "0" * 64))
    active = SimpleNamespace(classifier=SimpleNamespace(backbone="w.pth"))
    told = refusal(load_vit, "classifier", SimpleNamespace(active=active, profile="paper"))
    assert told.startswith("paper.classifier.backbone = 'w.pth': w.pth is no file of tensors")


@pytest.mark.parametrize(("catr_of_profile", "model"), [(None, "blip"), ("w.pth", "blip"), ("w.pth", "catr")])
def test_only_the_captioner_that_is_asked_for_is_brought(catr_of_profile, model):
    asked = requested_models(experiment_with(catr_of_profile, model))
    assert asked["catr"] == ("embedded.catr", "w.pth" if model == "catr" else None)
    assert asked["blip"][0] == "embedded.blip" and asked["blip"][1]


def test_a_captioner_that_the_profile_has_not_is_named():
    told = refusal(requested_models, experiment_with(None, "catr"))
    assert told.startswith("captioning.model = 'catr': embedded.catr names no checkpoint")


def experiment_with(catr_of_profile, model):
    """The committed params with the embedded profile's CATR, and the captioner, set."""
    params = load_experiment(ROOT / "params.yaml")
    embedded = params.embedded.model_copy(update={"catr": catr_of_profile})
    captioning = params.captioning.model_copy(update={"model": model})
    return params.model_copy(update={"profile": "embedded", "embedded": embedded, "captioning": captioning})
