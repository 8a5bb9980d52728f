"""Params are typed when they are read; a wrong one ends in one line that names it and what is allowed."""

import copy
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.params.experiment import Experiment, load_experiment
from stages.params.section import join_alternatives, read_params, validate_params
from stages.params.segmentation import Head

MISSING = object()
PROMPT = {"prompt": "a picture of"}
GRID_ROW = {"init": "scratch", "lr": 1.0, "weight_decay": 0, "temperature": 1.0, "epochs": 1, "batch_size": 1}


@pytest.fixture
def content():
    return copy.deepcopy(read_params(ROOT / "params.yaml"))


def change(content, key, value):
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[name]
    if value is MISSING:
        del section[last]
    else:
        section[last] = value


def error_message(content):
    with pytest.raises(InputError) as caught:
        validate_params(Experiment, content)
    assert str(caught.value).isprintable()
    return str(caught.value)


def write_with(path, key, text):
    """Write the project's params with `text` as the value of a key of the segmentation section."""
    before, section = (ROOT / "params.yaml").read_text().split("\nsegmentation:", 1)
    section, count = re.subn(rf"(\n  {key}:) [^\n]*", rf"\1 {text}", section, count=1)
    assert count == 1
    path.write_text(f"{before}\nsegmentation:{section}")


@pytest.mark.parametrize("text", ["1e-3", "1e-5", "2e-05", "0.001", "1.0e-3", "1"])
def test_rates_are_floats_in_every_notation(tmp_path, text):
    path = tmp_path / "params.yaml"
    write_with(path, "lr", text)
    rate = load_experiment(path).segmentation.lr
    assert isinstance(rate, float)
    assert rate == float(text)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("segmentation.lr", "abc", "segmentation.lr = 'abc': must be a number greater than 0"),
        ("segmentation.lr", "1e-3", "segmentation.lr = '1e-3': must be a number greater than 0"),
        ("segmentation.lr", -1, "segmentation.lr = -1: must be a number greater than 0"),
        ("segmentation.lr", True, "segmentation.lr = True: must be a number greater than 0"),
        ("segmentation.lr", float("inf"), "segmentation.lr = inf: must be a number greater than 0 and at most 1000"),
        ("segmentation.weight_decay", float("nan"), "segmentation.weight_decay = nan: must be a number from 0 to 1000"),
        ("segmentation.epochs", 0, "segmentation.epochs = 0: must be an integer from 1 to 10000"),
        ("segmentation.epochs", 1.5, "segmentation.epochs = 1.5: must be an integer from 1 to 10000"),
        ("segmentation.epochs", True, "segmentation.epochs = True: must be an integer from 1 to 10000"),
        ("segmentation.views", 99, "segmentation.views = 99: must be at most epochs, 15 (epoch e sees view e mod"),
        ("segmentation.heads", {}, "segmentation.heads = {}: dictionary should have at least 1 item"),
        ("segmentation.seeds", [], "segmentation.seeds = []: must be a list of one or more different integers"),
        ("retrieval.seeds", [1, 2, 1], "retrieval.seeds = [1, 2, 1]: must be a list of one or more different integers"),
        ("captioning.seeds", 3, "captioning.seeds = 3: must be a list of one or more different integers"),
        (
            "segmentation.compare",
            ["lineal"],
            "segmentation.compare = ['lineal']: must be a list of different heads: lin",
        ),
        ("segmentation.compare", ["linear", "linear"], "'linear']: must be a list of different heads: linear, conv"),
        (
            "backbones.last4.layers",
            "first",
            "backbones.last4.layers = 'first': must be 'last', 'last4' or a list of dif",
        ),
        ("backbones.last4.layers", [1, 1], "backbones.last4.layers = [1, 1]: must be 'last', 'last4' or a list of dif"),
        ("backbones.last4.layers", [], "backbones.last4.layers = []: must be 'last', 'last4' or a list of different"),
        ("backbones.last4.layer", 1, "backbones.last4.layer = 1: unknown key; allowed here: source, layers, random"),
        ("backbones.last4.source", MISSING, "'backbones.last4.source' is missing"),
        ("segmentation.heads.linear.kind", MISSING, "'segmentation.heads.linear.kind' is missing"),
        ("segmentation.heads.linear.pad", [1], "segmentation.heads.linear.pad = [1]: must be a valid integer, a valid"),
        ("segmentation.heads.a b", {"kind": "linear"}, "segmentation.heads.a b = 'a b': must be a name of letters"),
        (
            "classification.settings.base.lr",
            "hi",
            "settings.base.lr = 'hi': must be a number greater than 0 and at most 1000, 'base' or 'high'",
        ),
        (
            "classification.settings.base.lr",
            True,
            "settings.base.lr = True: must be a number greater than 0 and at most 1000, 'base' or 'high'",
        ),
        (
            "classification.settings.base.size",
            0,
            "classification.settings.base.size = 0: must be an integer from 1 to 4096, 'base' or 'large'",
        ),
        ("classification.settings.base.augment", "yes", "base.augment = 'yes': must be a valid boolean"),
        (
            "attention.captions.head",
            "max",
            "attention.captions.head = 'max': must be an integer from -1000 to 1000 or 'mean'",
        ),
        (
            "attention.captions.head",
            True,
            "attention.captions.head = True: must be an integer from -1000 to 1000 or 'mean'",
        ),
        ("attention.captions.cell", "x", "attention.captions.cell = 'x': must be a cell: greedy, k50_t1, "),
        ("attention.class_token.setting", "x", "attention.class_token.setting = 'x': must be a setting: base, high_lr"),
        (
            "embedded.examples.captions",
            0,
            "embedded.examples.captions = 0: must be an integer from 1 to 1000 or a list of image IDs",
        ),
        (
            "embedded.examples.captions",
            ["a", 1],
            "examples.captions = ['a', 1]: must be an integer from 1 to 1000 or a list of image IDs",
        ),
        ("embedded.objects_train", 20001, "embedded.objects_train = 20001: must be an integer from 1 to 20000"),
        ("embedded.view.short_side_max", 1, "embedded.view.short_side_max = 1: must be at least short_side_min, 80"),
        ("paper.voc_archive", "ftp://a.org/x", "paper.voc_archive = 'ftp://a.org/x': 'ftp://a.org/x': not an http or"),
        ("paper.captions", "http://a.org/", "paper.captions = 'http://a.org/': 'http://a.org/': the URL has no file"),
        ("seed", -1, "seed = -1: must be an integer from 0 to 4294967295"),
        ("seed", MISSING, "'seed' is missing"),
        ("profile", "papr", "profile = 'papr': must be 'embedded', 'folder' or 'paper'"),
        ("profil", "x", "params.yaml: profil = 'x': unknown key; allowed here: profile, seed, "),
        ("segmentation.lrr", 1, "segmentation.lrr = 1: unknown key; allowed here: views, epochs, batch_size, lr, "),
        ("captioning.cells.greedy.type", "gready", "type = 'gready': must be 'greedy', 'top_k', 'top_p' or 'beam'"),
        ("captioning.cells.k50_t1.k", 0, "captioning.cells.k50_t1.k = 0: must be an integer from 1 to 10000000"),
        ("captioning.cells.k50_t1.temperature", 0, "k50_t1.temperature = 0: must be a number from 0.001 to 1000"),
        ("captioning.cells.greedy.k", 3, "captioning.cells.greedy.k = 3: belongs to type top_k, not greedy"),
        (
            "captioning.cells.mine",
            {"type": "top_p", "temperature": 1, **PROMPT},
            "captioning.cells.mine.p is missing: type top_p needs it",
        ),
        (
            "captioning.cells.mine",
            {"type": "top_p", "temperature": 1, "p": 1.5, **PROMPT},
            "captioning.cells.mine.p = 1.5: must be a number greater than 0 and at most 1",
        ),
        ("captioning.cells.my cell", {"type": "greedy", **PROMPT}, "captioning.cells.my cell = 'my cell': must be a"),
        ("captioning.stop", "end", "captioning.stop = 'end': must be 'end_token' or 'batch'"),
        ("captioning.seeds", [1, 1], "captioning.seeds = [1, 1]: must be a list of one or more different integers"),
        ("captioning.max_length", 5, "captioning.max_length = 5: must be at least min_length, 10"),
        ("retrieval.grid.a/b", GRID_ROW, "retrieval.grid.a/b = 'a/b': must be a name of letters, digits, '-' and '_'"),
        ("retrieval.grid.scratch_lr1e-3_wd0.epochs", MISSING, "'retrieval.grid.scratch_lr1e-3_wd0.epochs' is missing"),
        ("retrieval.grid.scratch", GRID_ROW, "retrieval.grid.scratch: Table 4 has a row of this name; choose another"),
        ("retrieval.augment_probability", 1.5, "retrieval.augment_probability = 1.5: must be a number from 0 to 1"),
        ("retrieval.augment_probability", -1, "retrieval.augment_probability = -1: must be a number from 0 to 1"),
        ("retrieval.augment_probability", True, "retrieval.augment_probability = True: must be a number from 0 to 1"),
        ("retrieval.seeds", [1, 1], "retrieval.seeds = [1, 1]: must be a list of one or more different integers"),
        ("retrieval.views", 9, "retrieval.views = 9: must be at most the longest epochs, 8"),
        ("retrieval.finetune.init", "scratch", "retrieval.finetune.init = 'scratch': unknown key; allowed here: lr, "),
        (
            "segmentation.seeds",
            [-1],
            "segmentation.seeds = [-1]: must be a list of one or more different integers from 0",
        ),
        ("segmentation.epochs", 10**30, f"segmentation.epochs = {10**30}: must be an integer from 1 to 10000"),
        ("segmentation.batch_size", 10**30, "must be an integer from 1 to 100000"),
        ("segmentation.views", 10**30, "must be an integer from 1 to 10000000"),
        ("segmentation.lr", 1e30, "segmentation.lr = 1e+30: must be a number greater than 0 and at most 1000"),
        ("segmentation.lr", 10**400, "must be a number greater than 0 and at most 1000"),
        ("segmentation.heads.linear.size", 1e30, "linear.size = 1e+30: must be from -1000000 to 1000000"),
        ("segmentation.heads.linear.size", float("nan"), "linear.size = nan: must be from -1000000 to 1000000"),
        ("embedded.train", 10**30, "must be an integer from 1 to 10000000"),
        ("embedded.view.crop", 10**30, "must be an integer from 1 to 4096"),
        ("captioning.cells.greedy.prompt", "a" * 201, "must be a text of at most 200 characters"),
        ("captioning.cells.k50_t1.temperature", 1e-30, "temperature = 1e-30: must be a number from 0.001 to 1000"),
        ("retrieval.temperature", 1e-30, "retrieval.temperature = 1e-30: must be a number from 0.001 to 1000"),
        ("attention.positions.grids", [[1, 10**9]], "grids.0.1 = 1000000000: must be an integer from 1 to 100"),
        ("attention.class_token.block", 10**30, "must be an integer from -1000 to 1000"),
        ("compute.workers", 10**30, "must be an integer from 0 to 256"),
        ("compute.engine", "spark", "must be 'local' or 'ray'"),
        ("compute.store", "/mnt/shared", "must be null or the URI of a folder: s3://, gs:// or file://"),
        ("compute.store", "s3://bucket?region=x", "must be null or the URI of a folder: s3://, gs:// or file://"),
        ("compute.ray.actors", "all", "must be an integer from 1 to 100000 or 'auto'"),
        ("compute.ray.cpus", 0, "must be an integer from 1 to 256"),
        ("paper.backbone", "", "paper.backbone = '': string should have at least 1 character"),
        ("paper.blip", "https://a.org/", "paper.blip = 'https://a.org/': 'https://a.org/': the URL has no file name"),
        ("paper.blip", "http://[", "paper.blip = 'http://[': "),
        ("captioning.cells.k50_t1-seed2", {"type": "greedy", **PROMPT}, "does not end in '-seed' and digits"),
        ("segmentation.heads." + "x" * 101, {"kind": "linear"}, "must be a name of letters, digits, '-' and '_' (at"),
        ("segmentation.heads.a\nb", {"kind": "linear"}, r"'segmentation.heads.a\nb' = 'a\nb': must be a name"),
        ("segmentation.\x1b[31m", 1, r"segmentation.'\x1b[31m' = 1: unknown key"),
    ],
)
def test_error_names_key_value_and_what_is_allowed(content, key, value, message):
    change(content, key, value)
    assert message in error_message(content)


def test_minus_zero_is_zero(content):
    change(content, "segmentation.weight_decay", -0.0)
    change(content, "retrieval.augment_probability", -0.0)
    experiment = validate_params(Experiment, content)
    numbers = (experiment.segmentation.weight_decay, experiment.retrieval.augment_probability)
    assert str(numbers) == "(0.0, 0.0)"


def test_messages_are_bounded(content):
    change(content, "seed", 10**5000)  # more digits than Python prints
    assert len(error_message(content)) < 500
    change(content, "seed", 1)
    row = content["classification"]["settings"]["base"]
    content["classification"]["settings"] = {f"{'x' * 90}{index}": row for index in range(1000)}
    assert len(error_message(content)) < 500


def test_only_blip_repeats_the_originals_end_of_captions(content):
    change(content, "captioning.stop", "batch")
    assert validate_params(Experiment, content).captioning.stop == "batch"
    change(content, "captioning.model", "catr")
    assert error_message(content) == "params.yaml: captioning.stop = 'batch': belongs to model blip, not catr"


def test_a_cell_that_samples_runs_with_every_seed(content):
    change(content, "captioning.cells.nucleus", {"type": "top_p", "p": 0.9, "temperature": 1.0, **PROMPT})
    change(content, "captioning.cells.beam", {"type": "beam", "beams": 3, **PROMPT})
    change(content, "captioning.seeds", [4, 2])
    runs = validate_params(Experiment, content).captioning.runs
    assert runs[:3] == [("greedy", None), ("k50_t1", 4), ("k50_t1", 2)]
    assert runs[-3:] == [("nucleus", 4), ("nucleus", 2), ("beam", None)]


def test_further_errors_are_counted(content):
    change(content, "segmentation.lr", -1)
    change(content, "classification.settings.base.lr", "hi")  # one problem, although both branches of the union fail
    assert (
        error_message(content)
        == "params.yaml: segmentation.lr = -1: must be a number greater than 0 and at most 1000 (and 1 more)"
    )


def test_head_options_are_in_the_order_of_the_file():
    options = {"kernel": 3, "bias": True, "scale": 0.5, "act": "gelu"}
    head = validate_params(Head, {"kind": "mine"} | options)
    assert head.kind == "mine"
    assert list(head.options.items()) == list(options.items())
    assert list(head.model_dump().items()) == [("kind", "mine"), *options.items()]
    assert type(head.options["bias"]) is bool


@pytest.mark.parametrize(
    ("profile", "captions", "expected"), [("embedded", None, True), ("paper", None, False), ("paper", "a.json", True)]
)
def test_whether_there_are_captions_depends_on_the_active_profile(content, profile, captions, expected):
    change(content, "profile", profile)
    change(content, "paper.captions", captions)
    assert validate_params(Experiment, content).active.has_captions is expected


def test_stage_exits_with_2_and_one_line(tmp_path):
    write_with(tmp_path / "params.yaml", "epochs", "many")
    result = subprocess.run(
        [sys.executable, "-m", "stages.data"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "segmentation.epochs = 'many'" in result.stderr


def test_params_are_frozen(content):
    with pytest.raises(ValueError, match="frozen"):
        validate_params(Experiment, content).seed = 3


def test_run_seeds_depend_only_on_the_name(content):
    linear, transformer = "segmentation/linear", "segmentation/transformer"
    experiment = validate_params(Experiment, content)
    assert experiment.seed_for(linear) != experiment.seed_for(transformer)
    change(content, "segmentation.heads.transformer", MISSING)
    assert validate_params(Experiment, content).seed_for(linear) == experiment.seed_for(linear)


def test_setting_has_numbers_of_its_own_or_of_the_profile(content):
    change(content, "classification.settings.base.lr", 1e-5)
    change(content, "classification.settings.base.size", 96)
    experiment = validate_params(Experiment, content)
    settings = experiment.classification.settings
    classifier = experiment.paper.classifier
    assert settings["high_lr"].resolved(classifier).lr == 1e-4
    assert settings["augmented"].resolved(classifier).size == 256
    assert settings["base"].resolved(classifier).lr == 1e-5
    assert settings["base"].resolved(classifier).size == 96


def test_alternatives_are_joined():
    assert [join_alternatives(list(names)) for names in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]


def test_a_further_profile_needs_no_change_to_the_params(content):
    content["mine"] = {**content["folder"], "root": "/data/mine"}
    content["profile"] = "mine"
    experiment = validate_params(Experiment, content)
    assert experiment.active.backbone == content["folder"]["backbone"]
    own_keys = {key: content["folder"][key] for key in ("path", "max_pixels")}
    assert experiment.active.model_extra == {**own_keys, "root": "/data/mine"}
    content["active"] = content.pop("mine")  # also the name of a property
    content["profile"] = "active"
    assert validate_params(Experiment, content).active.model_extra == experiment.active.model_extra
    content["mine"] = {**content["folder"], "view": None}
    with pytest.raises(InputError, match=r"params\.yaml: mine\.view = None"):
        validate_params(Experiment, content)
