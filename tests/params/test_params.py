"""Params are typed at the border; a wrong one ends in one line."""

import copy
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.core.stage import InputError
from stages.params.experiment import Experiment, load_experiment
from stages.params.section import read_params, validate_params


@pytest.fixture
def content():
    return copy.deepcopy(read_params(ROOT / "params.yaml"))


def refusal(content):
    with pytest.raises(InputError) as caught:
        validate_params(Experiment, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_with(path, key, written):
    """The project's params with the first `KEY: value` of the segmentation section as `written`."""
    before, section = (ROOT / "params.yaml").read_text().split("\nsegmentation:", 1)
    section, found = re.subn(rf"(\n  {key}:) [^\n]*", rf"\1 {written}", section, count=1)
    assert found
    path.write_text(f"{before}\nsegmentation:{section}")


@pytest.mark.parametrize("written", ["1e-3", "1e-5", "2e-05", "0.001", "1.0e-3"])
def test_rates_arrive_as_floats_however_they_are_written(tmp_path, written):
    path = tmp_path / "params.yaml"
    write_with(path, "lr", written)
    rate = load_experiment(path).segmentation.lr
    assert isinstance(rate, float)
    assert rate == float(written)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["segmentation"].update(lr="abc"), ["segmentation.lr", "'abc'", "number"]),
        (lambda c: c["segmentation"].update(lr=-1), ["segmentation.lr", "-1", "greater than 0"]),
        (lambda c: c["segmentation"].update(lr=True), ["segmentation.lr", "True", "number"]),
        (lambda c: c["segmentation"].update(weight_decay=float("nan")), ["segmentation.weight_decay", "finite"]),
        (lambda c: c["segmentation"]["heads"].update(conv={"kind": "convolutional"}), ["heads.conv.kernel is missing"]),
        (
            lambda c: c["classification"]["settings"]["base"].update(lr="fast"),
            ["classification.settings.base.lr", "'fast'", "number", "one of: base, high"],
        ),
        (
            lambda c: c["classification"]["settings"]["base"].update(size=0),
            ["classification.settings.base.size", "greater than 0", "one of: base, large"],
        ),
        (lambda c: c["classification"]["settings"]["base"].update(augment="yes"), ["base.augment", "boolean"]),
        (lambda c: c["attention"]["captions"].update(head="max"), ["attention.captions.head", "one of: mean"]),
        (lambda c: c["attention"]["captions"].update(cell="x"), [": attention.captions.cell = 'x'", "greedy"]),
        (lambda c: c["attention"]["class_token"].update(setting="x"), ["class_token.setting = 'x'", "accumulated"]),
        (lambda c: c["embedded"]["examples"].update(captions=0), ["examples.captions = 0", "or a list of image ids"]),
        (lambda c: c["embedded"].update(objects_train=20001), ["embedded.objects_train", "20000"]),
        (lambda c: c["segmentation"].update(epochs=0), ["segmentation.epochs", "greater than 0"]),
        (lambda c: c["segmentation"].update(epochs=1.5), ["segmentation.epochs", "1.5", "integer"]),
        (lambda c: c["segmentation"].update(lrr=1), ["segmentation.lrr", "allowed here", "lr", "epochs"]),
        (lambda c: c.update(profil="x"), ["'profil'", "allowed here", "profile"]),
        (lambda c: c.update(profile="papr"), ["profile", "'papr'", "'embedded', 'folder' or 'paper'"]),
        (
            lambda c: c["captioning"]["cells"]["greedy"].update(type="gready"),
            ["captioning.cells.greedy.type", "'gready'", "'greedy', 'top_k', 'top_p' or 'beam'"],
        ),
        (
            lambda c: c["captioning"]["cells"]["k50_t1"].update(k=0),
            ["captioning.cells.k50_t1.k", "0", "greater than 0"],
        ),
        (
            lambda c: c["captioning"]["cells"]["k50_t1"].update(temperature=0),
            ["captioning.cells.k50_t1.temperature", "0", "greater than 0"],
        ),
        (
            lambda c: c["captioning"]["cells"]["k50_t1"].update(temperature=-0.5),
            ["captioning.cells.k50_t1.temperature", "-0.5", "greater than 0"],
        ),
        (lambda c: c["captioning"]["cells"]["greedy"].update(k=3), ["cells.greedy.k = 3", "belongs to type top_k"]),
        (
            lambda c: c["captioning"]["cells"].update(mine={"type": "top_p", "prompt": "a", "temperature": 1}),
            ["captioning.cells.mine.p is missing", "type top_p needs it"],
        ),
        (
            lambda c: c["captioning"]["cells"].update(
                mine={"type": "top_p", "prompt": "a", "temperature": 1, "p": 1.5}
            ),
            ["captioning.cells.mine.p", "1.5", "less than or equal to 1"],
        ),
        (lambda c: c["captioning"].update(max_length=5), ["captioning.max_length = 5", "at least min_length, 10"]),
        (
            lambda c: c["captioning"]["cells"].update({"my cell": {"type": "greedy", "prompt": ""}}),
            ["captioning.cells.my cell", "pattern"],
        ),
        (lambda c: c["retrieval"]["grid"].update({"a/b": {}}), ["retrieval.grid.a/b", "pattern"]),
        (
            lambda c: c["retrieval"]["grid"]["scratch_lr1e-3_wd0"].pop("epochs"),
            ["scratch_lr1e-3_wd0.epochs", "missing"],
        ),
        (
            lambda c: c["retrieval"]["grid"].update(scratch=c["retrieval"]["grid"]["scratch_lr1e-3_wd0"]),
            ["retrieval.grid", "'scratch' is a row of Table 4"],
        ),
        (lambda c: c["retrieval"].update(views=9), ["retrieval.views = 9", "at most the longest epochs, 8"]),
        (lambda c: c["retrieval"].update(temperature=0), ["retrieval.temperature", "greater than 0"]),
        (lambda c: c["retrieval"]["finetune"].update(init="scratch"), ["retrieval.finetune.init", "allowed here"]),
        (
            lambda c: c["segmentation"]["heads"]["linear"].update(kind="conv"),
            ["segmentation.heads.linear.kind", "conv"],
        ),
        (
            lambda c: c["segmentation"]["heads"]["linear"].update(kernel=3),
            ["segmentation.heads.linear.kernel = 3", "belongs to kind 'convolutional'"],
        ),
        (lambda c: c["segmentation"]["heads"]["linear"].update(pad=1), ["heads.linear.pad", "kind, kernel, shared_qk"]),
        (lambda c: c["segmentation"]["heads"].update({"a b": {"kind": "linear"}}), ["segmentation.heads.a b"]),
        (lambda c: c["segmentation"].update(views=99), ["segmentation.views = 99: must be at most epochs, "]),
        (
            lambda c: c["embedded"]["view"].update(short_side_max=1),
            ["embedded.view.short_side_max = 1: must be at least short_side_min"],
        ),
        (lambda c: c.pop("seed"), ["'seed' is missing"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(content, change, named):
    change(content)
    line = refusal(content)
    for part in named:
        assert part in line


def test_a_stage_exits_with_2_and_one_line(tmp_path):
    write_with(tmp_path / "params.yaml", "epochs", "many")
    ran = subprocess.run(
        [sys.executable, "-m", "stages.data"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "segmentation.epochs = 'many'" in ran.stderr


def test_params_are_frozen(content):
    with pytest.raises(ValueError, match="frozen"):
        validate_params(Experiment, content).seed = 3


def test_run_seeds_differ_by_name_and_hang_on_nothing_else(content):
    experiment = validate_params(Experiment, content)
    assert experiment.seed_for("segmentation/linear") == experiment.seed_for("segmentation/linear")
    assert experiment.seed_for("segmentation/linear") != experiment.seed_for("segmentation/transformer")
    content["segmentation"]["heads"].pop("transformer")
    assert validate_params(Experiment, content).seed_for("segmentation/linear") == experiment.seed_for(
        "segmentation/linear"
    )


def test_a_setting_takes_its_numbers_from_the_profile_or_has_its_own(content):
    experiment = validate_params(Experiment, content)
    settings, classifier = experiment.classification.settings, experiment.paper.classifier
    assert (settings["high_lr"].resolved(classifier).lr, settings["augmented"].resolved(classifier).size) == (1e-4, 256)
    content["classification"]["settings"]["base"] |= {"lr": 1e-5, "size": 96}
    own = validate_params(Experiment, content).classification.settings["base"].resolved(classifier)
    assert (own.lr, own.size) == (1e-5, 96)
