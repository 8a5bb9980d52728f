"""Models come to this machine from files, URLs and a local hub, once, and are reused without a network."""

import hashlib
import shutil
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
from ruamel.yaml import YAML

from stages.core.hashes import file_sha256
from stages.core.stage import InputError
from stages.fetch import download
from stages.models import catr, vit
from stages.models.checkpoints import __main__ as checkpoints
from stages.models.checkpoints.__main__ import requested_models
from stages.models.checkpoints.hub import cache_folder, cached_snapshot, download_model, find_weights
from stages.models.checkpoints.record import Checkpoint, read_checkpoint, record_path, write_checkpoint
from stages.models.checkpoints.resolver import RESOLVERS, CheckpointResolver
from stages.models.checkpoints.vits import load_vit
from stages.params.experiment import load_experiment

LATER = COMMIT[::-1]
SAFETENSORS = b"safe" * 10_000
PICKLE = b"bin" * 10_000
BOTH = {
    "model.safetensors": SAFETENSORS,
    "pytorch_model.bin": PICKLE,
    "config.json": b"{}",
    "vocab.txt": b"a\n",
    "README.md": b"not needed",
    "tf_model.h5": b"not needed",
}
OLDER = {"pytorch_model.bin": PICKLE, "config.json": b"{}"}
REPOSITORIES = {
    "lab/both": BOTH,
    "lab/older": OLDER,
    "lab/none": {"tf_model.h5": b"", "config.json": b"{}"},
    "gated/model": {"model.safetensors": SAFETENSORS},
}


class Hub(Loopback):
    """`paper_site`'s hub at `commit`, with other responses to the paths in `replaced`."""

    def __init__(self):
        super().__init__({}, fallback=self.respond)
        self.repositories = dict(REPOSITORIES)
        self.commit = COMMIT
        self.replaced: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def respond(self, method, path):
        if path in self.replaced:
            return self.replaced[path]
        status, headers, body = hub(self.repositories)(method, path.replace(self.commit, COMMIT))
        headers = {name: value.replace(COMMIT, self.commit) for name, value in headers.items()}
        return status, headers, body.replace(COMMIT.encode(), self.commit.encode())

    def serve_ranges(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.headers[path] = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A hub that takes the place of Hugging Face's; its client does not wait between attempts."""
    with Hub() as running:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        # The client reads HF_ENDPOINT once, at its import.
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()  # the next one reads the proxies of this environment
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


def error_of(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def file_path(model: str, name: str, commit: str = COMMIT) -> str:
    return f"/{model}/resolve/{commit}/{name}"


# The hub


def test_only_the_needed_files_and_the_best_weights_are_downloaded(site, downloads):
    folder, commit = download_model("lab/both", None, downloads, ["*.json", "vocab.txt"])
    assert commit == COMMIT
    assert files(folder) == {"model.safetensors", "config.json", "vocab.txt"}
    assert find_weights(folder).read_bytes() == SAFETENSORS
    folder, _ = download_model("lab/older", None, downloads, ["*.json"])
    assert files(folder) == {"pytorch_model.bin", "config.json"}
    assert find_weights(folder).read_bytes() == PICKLE


def test_a_relative_downloads_folder_gives_a_relative_path(site, tmp_path, monkeypatch):
    """A record in another clone of the project is the same file."""
    monkeypatch.chdir(tmp_path)
    folder, _ = download_model("lab/both", COMMIT, Path("downloads"), ["*.json"])
    assert folder == Path("downloads/hub/models--lab--both/snapshots") / COMMIT
    assert download_model("lab/both", COMMIT, Path("downloads"), ["*.json"]) == (folder, COMMIT)


def test_the_file_of_weights_may_have_another_name(site, downloads):
    site.repositories["lab/own"] = {"model.safetensors": SAFETENSORS, "open.bin": PICKLE, "config.json": b"{}"}
    folder, _ = download_model("lab/own", None, downloads, ["config.json"], ("open.bin",))
    assert files(folder) == {"open.bin", "config.json"}


@pytest.mark.parametrize("revision", [COMMIT, None])
def test_a_commit_in_the_cache_needs_no_request(site, downloads, revision):
    first = download_model("lab/both", revision, downloads, ["*.json"])
    count = len(site.requests)
    assert download_model("lab/both", COMMIT, downloads, ["*.json"]) == first
    assert len(site.requests) == count
    site.stop()
    assert download_model("lab/both", COMMIT, downloads, ["*.json"]) == first


def test_a_branch_is_followed_and_unchanged_files_are_not_sent_again(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    download_model("lab/both", None, downloads, ["*.json"])
    assert site.count(file_path("lab/both", "model.safetensors")) == 1
    site.commit = LATER
    site.repositories["lab/both"] = BOTH | {"model.safetensors": b"newer"}
    folder, commit = download_model("lab/both", None, downloads, ["*.json"])
    assert commit == LATER
    assert find_weights(folder).read_bytes() == b"newer"


@pytest.mark.parametrize(
    "response",
    [None, (503, {}, b"down"), (200, {"Content-Type": "text/html"}, b"<html>the login page of a hotel</html>")],
)
def test_without_the_hub_a_branch_is_the_commit_downloaded_before(site, downloads, capsys, response):
    first = download_model("lab/both", None, downloads, ["*.json"])
    if response:
        site.replaced["/api/models/lab/both"] = response
    else:
        site.stop()
    assert download_model("lab/both", None, downloads, ["*.json"]) == first
    assert f"the hub does not answer; using commit {COMMIT}, downloaded before" in capsys.readouterr().out


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_without_the_hub_and_a_cache_the_error_says_what_to_do(site, downloads, tmp_path, revision):
    connected = tmp_path / "connected"
    first, _ = download_model("lab/both", revision, connected, ["*.json", "vocab.txt"])
    site.stop()
    message = error_of(download_model, "lab/both", revision, downloads, ["*.json", "vocab.txt"])
    assert message == (
        "'lab/both' could not be downloaded ([Errno 111] Connection refused): "
        f"run `hf download lab/both --revision {revision or 'main'} --include '*.json' --include 'vocab.txt' "
        f"--include 'model.safetensors' --include 'pytorch_model.bin' --cache-dir {downloads / 'hub'}` "
        "on a machine with a network and copy that folder here"
    )
    shutil.copytree(connected / "hub", downloads / "hub", symlinks=True)
    folder, commit = download_model("lab/both", revision, downloads, ["*.json", "vocab.txt"])
    assert commit == COMMIT
    assert files(folder) == files(first)


def test_without_the_hub_another_revision_does_not_replace_the_requested(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.stop()
    assert "--revision v2" in error_of(download_model, "lab/both", "v2", downloads, ["*.json"])


def test_what_is_in_the_cache(site, downloads):
    assert cached_snapshot("lab/both", None, downloads) is None
    folder, _ = download_model("lab/both", COMMIT, downloads, ["vocab.txt"], ())
    assert folder.is_relative_to(cache_folder("lab/both", downloads))
    assert cached_snapshot("lab/both", COMMIT, downloads) == folder
    assert cached_snapshot("lab/both", COMMIT, downloads, ["vocab.txt"]) == folder
    assert cached_snapshot("lab/both", COMMIT, downloads, ["*.json"]) is None
    assert cached_snapshot("lab/both", COMMIT, downloads, ["vocab.txt"], ["model.safetensors"]) is None
    assert cached_snapshot("lab/both", LATER, downloads) is None


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("lab/nothing", None, "'lab/nothing': no such model on ADDRESS/lab/nothing"),
        ("lab/nothing", COMMIT, "'lab/nothing': no such model on ADDRESS/lab/nothing"),
        ("lab/both", "v9", "'lab/both' has no revision 'v9' on ADDRESS/lab/both"),
        ("lab/both", LATER, f"'lab/both' has no revision '{LATER}' on ADDRESS/lab/both"),
        ("lab/none", None, "'lab/none' on the hub has no model.safetensors or pytorch_model.bin"),
    ],
)
def test_what_the_hub_lacks_is_named(site, downloads, name, revision, message):
    assert error_of(download_model, name, revision, downloads, ["*.json"]) == message.replace("ADDRESS", site.address)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/api/models/gated/model", file_path("gated/model", "model.safetensors")])
def test_a_gated_model_is_named(site, downloads, status, path):
    """The true hub describes a gated model, and refuses its files."""
    site.replaced[path] = (status, {"X-Error-Code": "GatedRepo"}, b"{}")
    message = error_of(download_model, "gated/model", None, downloads, ["*.json"])
    page = f"{site.address}/gated/model"
    assert message == f"'gated/model' is gated: accept its license on {page}, then run `hf auth login`"


@pytest.mark.parametrize(("status", "reason"), [(401, "401 Unauthorized"), (403, "403 Forbidden"), (500, "500 Inter")])
def test_other_statuses_are_one_line(site, downloads, status, reason):
    site.replaced["/api/models/lab/both"] = (status, {}, b"<html>many\nlines</html>")
    assert reason in error_of(download_model, "lab/both", None, downloads, ["*.json"])


def test_a_broken_connection_is_resumed(site, downloads, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # the client loses up to one chunk, of 10 MB
    path = file_path("lab/both", "model.safetensors")
    site.serve_ranges(path, SAFETENSORS)
    site.fail(path, times=1, cut=30_000)
    folder, _ = download_model("lab/both", None, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFETENSORS
    assert site.ranges(path) == [None, "bytes=30000-"]


def test_an_interrupted_download_is_not_used_and_is_completed_later(site, downloads):
    path = file_path("lab/both", "model.safetensors")
    site.fail(path, times=6, cut=20_000)
    assert "'lab/both' could not be downloaded" in error_of(download_model, "lab/both", None, downloads, ["*.json"])
    site.stop()
    error_of(download_model, "lab/both", None, downloads, ["*.json"])
    site.start()
    folder, _ = download_model("lab/both", None, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFETENSORS


def test_more_files_of_a_pinned_commit_are_downloaded(site, downloads):
    """A vocabulary first, then a BLIP of the same repository."""
    download_model("lab/both", COMMIT, downloads, ["vocab.txt"], ())
    folder, _ = download_model("lab/both", COMMIT, downloads, ["*.json"])
    assert find_weights(folder).read_bytes() == SAFETENSORS


def test_each_commit_has_its_own_folder(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.commit = LATER
    site.repositories["lab/both"] = OLDER
    folder, commit = download_model("lab/both", LATER, downloads, ["*.json"])
    assert commit == LATER
    assert find_weights(folder).read_bytes() == PICKLE


def test_the_weights_of_an_older_commit_are_not_taken_for_those_of_a_newer(site, downloads):
    download_model("lab/both", None, downloads, ["*.json"])
    site.commit = LATER
    site.repositories["lab/both"] = BOTH | {"model.safetensors": b"newer"}
    site.replaced[f"/api/models/lab/both/tree/{LATER}"] = (500, {}, b"down")
    folder, commit = download_model("lab/both", None, downloads, ["*.json"])
    assert (commit, find_weights(folder).read_bytes()) == (COMMIT, SAFETENSORS)


# The resolver


@pytest.fixture(scope="module")
def contents():
    """Small checkpoints of the true layouts, and a vocabulary that fits them."""
    return {
        "vit": paper_site.vit(paper_site.VITS[0]),
        "blip": paper_site.blip(),
        "catr": paper_site.catr(),
        "vocab": paper_site.vocabulary(),
    }


@pytest.fixture
def resolver(site, downloads, contents):
    site.repositories[f"timm/{paper_site.VITS[0]}"] = {"model.safetensors": contents["vit"], "config.json": b"{}"}
    site.repositories["bert/words"] = {"vocab.txt": contents["vocab"], "pytorch_model.bin": PICKLE}
    return CheckpointResolver(downloads, vocabulary=f"bert/words@{COMMIT}")


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_timm_vit_comes_from_the_hub_and_loads_offline(resolver, site, contents):
    name = paper_site.VITS[0]
    pinned = f"{name}@{COMMIT}"
    for source in (name, pinned):
        checkpoint = resolver.resolve_vit(source)
        assert (checkpoint.source, checkpoint.sha256, checkpoint.revision) == (source, sha256(contents["vit"]), COMMIT)
    site.stop()
    backbone = vit.load(pinned, checkpoint.file)
    assert (backbone.dim, len(backbone.vit.blocks)) == (64, 6)
    assert resolver.resolve_vit(pinned) == checkpoint


def test_a_vit_in_a_file_stays_where_it_is(resolver, site, tmp_path):
    path = write(tmp_path / "mine.pth", b"weights")
    assert resolver.resolve_vit(path) == Checkpoint(path, path, sha256(b"weights"))
    assert not site.requests


def test_a_url_is_downloaded_once_and_verified(resolver, site, downloads, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    site.files["/mine.pth"] = b"weights"
    source = f"{site.url('/mine.pth')}#sha256={sha256(b'weights')}"
    checkpoint = resolver.resolve_vit(source)
    assert (checkpoint.file, checkpoint.sha256) == (downloads / "mine.pth", sha256(b"weights"))
    assert resolver.resolve_vit(source) == checkpoint
    assert site.count("/mine.pth") == 1
    message = error_of(resolver.resolve_vit, f"{site.url('/other.pth')}#sha256={'0' * 64}")
    assert "404" in message and "0" * 64 in message and str(downloads / "other.pth") in message


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("backbone", "nowhere.pth", "no such file"),
        ("backbone", "vit_tinny", "unknown backbone 'vit_tinny'.*such as .*vit_"),
        (
            "backbone",
            "vit_small_patch16_224.nobody",
            "Invalid pretrained tag .nobody.*There are: vit_small_patch16_224",
        ),
        ("blip", "nowhere.pth", "no such file"),
        ("blip", "blip_scenes", "no such folder; allowed are a folder, OWNER/NAME on the hub, or an original"),
        ("blip", "data/checkpoints/blip_scenes", "no such folder"),
        ("blip", "lab/none", "'lab/none' on the hub has no vocab.txt, no model.safetensors"),
        ("catr", "nowhere.pth", "no such file"),
        ("catr", "lab/both", "no such folder; allowed are a folder, or a CATR checkpoint's file or URL"),
    ],
)
def test_a_source_without_a_model_is_named(resolver, tmp_path, monkeypatch, kind, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        RESOLVERS[kind](resolver, source)


def test_a_blip_is_a_folder_or_a_repository(resolver, site, tmp_path):
    folder = tmp_path / "ours"
    write(folder / "pytorch_model.bin", PICKLE)
    assert resolver.resolve_blip(str(folder)) == Checkpoint(str(folder), str(folder), sha256(PICKLE))
    write(folder / "model.safetensors", SAFETENSORS)
    assert resolver.resolve_blip(str(folder)).sha256 == sha256(SAFETENSORS)
    assert not site.requests
    checkpoint = resolver.resolve_blip("lab/both@main")
    assert (checkpoint.sha256, checkpoint.revision) == (sha256(SAFETENSORS), COMMIT)
    assert files(checkpoint.file) == {"model.safetensors", "config.json", "vocab.txt"}
    (tmp_path / "empty").mkdir()
    message = error_of(resolver.resolve_blip, str(tmp_path / "empty"))
    assert message == f"{tmp_path / 'empty'} holds no model.safetensors or pytorch_model.bin"


def test_a_catr_is_a_folder(resolver, tmp_path):
    folder = tmp_path / "ours"
    write(folder / "model.safetensors", SAFETENSORS)
    assert resolver.resolve_catr(str(folder)) == Checkpoint(str(folder), str(folder), sha256(SAFETENSORS))
    (tmp_path / "empty").mkdir()
    assert error_of(resolver.resolve_catr, str(tmp_path / "empty")).endswith("empty holds no model.safetensors")


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_an_original_checkpoint_is_converted_once(resolver, site, contents, tmp_path, capsys, kind):
    path = write(tmp_path / "weight.pth", contents[kind])
    checkpoint = RESOLVERS[kind](resolver, path)
    assert checkpoint.sha256 == sha256(contents[kind])  # of the published file, not of the converted one
    assert capsys.readouterr().out.count(": converting") == 1
    site.stop()  # the vocabulary is not requested again either
    assert RESOLVERS[kind](resolver, path) == checkpoint
    moved = write(tmp_path / "elsewhere/weight.pth", contents[kind])
    assert RESOLVERS[kind](resolver, moved) == replace(checkpoint, source=moved)
    assert "converting" not in capsys.readouterr().out
    find_weights(checkpoint.file).unlink()  # as a killed conversion leaves the folder
    assert RESOLVERS[kind](resolver, path) == checkpoint
    assert find_weights(checkpoint.file).is_file()
    assert "converting" in capsys.readouterr().out


def test_another_checkpoint_of_the_same_name_has_its_own_folder(resolver, contents, tmp_path):
    first = resolver.resolve_catr(write(tmp_path / "weight.pth", contents["catr"]))
    second = resolver.resolve_catr(write(tmp_path / "weight.pth", paper_site.catr()))
    assert first.path != second.path
    assert file_sha256(first.file / catr.WEIGHTS) != file_sha256(second.file / catr.WEIGHTS)
    assert catr.load(second.file / catr.WEIGHTS).config.vocabulary == paper_site.words()


def test_another_vocabulary_is_converted_again(resolver, contents, tmp_path):
    path = write(tmp_path / "weight.pth", contents["catr"])
    resolver.resolve_catr(path)
    vocabulary = write(tmp_path / "vocab.txt", contents["vocab"].replace(b"\ndog\n", b"\nyak\n"))
    checkpoint = replace(resolver, vocabulary=vocabulary).resolve_catr(path)
    assert "yak" in catr.load_tokenizer(checkpoint.file).get_vocab()


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_a_vocabulary_of_another_size_is_named(resolver, contents, tmp_path, kind):
    vocabulary = write(tmp_path / "vocab.txt", contents["vocab"] + b"more\n")
    path = write(tmp_path / "w.pth", contents[kind])
    message = error_of(RESOLVERS[kind], replace(resolver, vocabulary=vocabulary), path)
    size = paper_site.words() + 1 + 2 * (kind == "blip")  # BLIP adds two tokens
    for part in ("vocab.txt", "w.pth", str(size), str(size - 1)):
        assert part in message
    assert not list((resolver.downloads / "converted").rglob("model.safetensors"))


@pytest.mark.parametrize("vocabulary", ["", "bert", "nowhere/vocab.txt/here"])
def test_a_missing_vocabulary_is_named(resolver, contents, tmp_path, vocabulary):
    path = write(tmp_path / "w.pth", contents["catr"])
    message = error_of(replace(resolver, vocabulary=vocabulary).resolve_catr, path)
    assert message == f"vocabulary = '{vocabulary}': expected a vocab.txt, or OWNER/NAME on the hub"


def test_a_repository_without_a_vocabulary_is_named(resolver, contents, tmp_path):
    path = write(tmp_path / "w.pth", contents["catr"])
    message = error_of(replace(resolver, vocabulary="lab/older").resolve_catr, path)
    assert message == "'lab/older' on the hub has no vocab.txt"


@pytest.mark.parametrize("kind", ["blip", "catr"])
def test_a_file_without_tensors_is_named(resolver, tmp_path, kind):
    path = write(tmp_path / "w.pth", b"<html>not found</html>")
    assert "w.pth" in error_of(RESOLVERS[kind], resolver, path)


# The records


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_record_is_read_for_its_source(project):
    checkpoint = Checkpoint("a/b@main", "weights.pth", "0" * 64, COMMIT)
    write(project / "weights.pth", b"x")
    write_checkpoint("blip", checkpoint)
    assert read_checkpoint("blip", "a/b@main") == checkpoint
    assert checkpoint.file.is_file()
    message = error_of(read_checkpoint, "blip", "a/c")
    assert message == "data/fetched/blip.json holds 'a/b@main', not 'a/c'; run `dvc repro checkpoints`"


def test_a_missing_record_and_an_empty_record_give_the_same_error(project):
    missing = error_of(read_checkpoint, "catr", "a/c")
    write_checkpoint("catr", None)
    assert record_path("catr").is_file()
    message = "data/fetched/catr.json holds nothing, not 'a/c'; run `dvc repro checkpoints`"
    assert missing == error_of(read_checkpoint, "catr", "a/c") == message


def test_a_record_of_a_missing_file_is_refused(project):
    write_checkpoint("backbone", Checkpoint("a", "data/downloads/w.pth", "0" * 64))
    message = error_of(read_checkpoint, "backbone", "a")
    assert message == "data/downloads/w.pth of 'a' is gone; run `dvc repro -f checkpoints`"


def test_a_vit_that_cannot_be_loaded_names_its_param(project):
    write(project / "w.pth", b"<html>")
    write_checkpoint("classifier", Checkpoint("w.pth", "w.pth", "0" * 64))
    active = SimpleNamespace(backbone="v.pth", classifier=SimpleNamespace(backbone="w.pth"))
    message = error_of(load_vit, "classifier", SimpleNamespace(active=active, profile="paper"))
    assert message.startswith("paper.classifier.backbone = 'w.pth': w.pth ")


@pytest.mark.parametrize(
    ("catr_of_profile", "model", "also", "expected"),
    [
        (None, "blip", None, None),
        (None, "blip", "catr", None),  # the second captioner is optional
        ("w.pth", "blip", None, None),
        ("w.pth", "blip", "catr", "w.pth"),
        ("w.pth", "catr", "blip", "w.pth"),
    ],
)
def test_only_the_requested_captioners_are_resolved(catr_of_profile, model, also, expected):
    models = requested_models(experiment_with(catr_of_profile, model, also))
    assert models["catr"] == ("embedded.catr", expected)
    assert models["blip"][0] == "embedded.blip" and models["blip"][1]


def test_a_captioner_that_the_profile_lacks_is_named():
    message = error_of(requested_models, experiment_with(None, "catr", None))
    assert message.startswith("captioning.model = 'catr': embedded.catr names no checkpoint")


def experiment_with(catr_of_profile, model, also):
    """The committed params with the embedded profile's CATR, and both captioners, set."""
    params = load_experiment(ROOT / "params.yaml")
    embedded = params.embedded.model_copy(update={"catr": catr_of_profile})
    captioning = params.captioning.model_copy(update={"model": model})
    captions = params.attention.captions.model_copy(update={"also": also})
    attention = params.attention.model_copy(update={"captions": captions})
    tasks = {"captioning": captioning, "attention": attention}
    return params.model_copy(update={"profile": "embedded", "embedded": embedded, **tasks})


def test_a_password_in_a_url_is_neither_stored_nor_printed(resolver, site, contents, project, capsys):
    site.files["/mine.safetensors"] = contents["vit"]
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    source = site.url("/mine.safetensors").replace("://", "://user:pa55@") + "?token=pa55"
    params["profile"] = "embedded"
    params["embedded"]["backbone"] = params["embedded"]["classifier"]["backbone"] = source
    params["embedded"]["blip"] = site.url("/none.pth").replace("://", "://user:pa55@")
    params["paper"]["downloads"] = "downloads"
    yaml.dump(params, project / "params.yaml")
    experiment = load_experiment()
    assert "pa55" not in repr(experiment)
    message = error_of(checkpoints.main)
    assert message.startswith(f"embedded.blip = '{site.url('/none.pth').replace('://', '://***@')}': ")
    record = record_path("backbone").read_text()
    printed = capsys.readouterr()
    assert "***@127.0.0.1" in record and "***@127.0.0.1" in printed.out
    assert "pa55" not in record + printed.out + printed.err + message
    assert read_checkpoint("backbone", experiment.active.backbone).sha256 == sha256(contents["vit"])
