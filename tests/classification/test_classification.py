"""Fine-tuning: views, accumulated gradients, resuming, records, predictions."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, interrupt_at_first_save
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from stages.classification import classifier, finetune, predict, training
from stages.classification.classifier import Classifier
from stages.classification.pixels import ImageViews, augmented_view, plain_view
from stages.classification.training import EvalResult, evaluate, train_step
from stages.core import train_state
from stages.core.live import Recorder
from stages.core.runs import Run, read_run, record_path, run_key, write_run
from stages.core.skipped import skip_reason
from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, Manifest, Row
from stages.models import vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.models.compute import MixedPrecision
from stages.params.classification import Setting
from stages.params.compute import Compute
from stages.params.experiment import load_experiment

LABELS = ("blue", "green", "red")
FLOAT32 = MixedPrecision(Compute(precision="float32", compile=False, workers=0, live=False))
SMALL = vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 8), outputs=28)
WEIGHTS = Path("data/models/classification/mine-seed1")
PREDICTIONS = Path("data/predictions/classification/mine-seed1.parquet")


def write_images(folder: Path, count: int) -> list[Row]:
    """Write images whose color is their label, labels in turn; every fourth is for validation."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        label = index % 3
        split = "val" if index % 4 == 3 else "train"
        pixels = rng.integers(0, 90, (26, 30, 3))
        pixels[..., 2 - label] += 150
        path = folder / f"{LABELS[label]}_{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append(Row(path.stem, split, str(path), label=label, height=26, width=30, content=str(index)))
    return rows


def random_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 24, 24), dtype=torch.uint8)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small untrained ViT, 24 labeled images, and one short setting."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    rows = write_images(tmp_path / "pictures", 24)
    manifests.write_manifest(Manifest(tuple(rows), "pictures", ("a", "b"), LABELS), LABELED)
    torch.manual_seed(0)
    vit.save(Path("vit.safetensors"), vit.build(SMALL), SMALL)
    write_checkpoint("classifier", Checkpoint("vit.safetensors", "vit.safetensors", "0"))
    root = Path(finetune.__file__).parents[2]
    experiment = load_experiment(root / "params.yaml")
    own_vit = experiment.embedded.classifier.model_copy(update={"backbone": "vit.safetensors"})
    setting = Setting(lr=3e-3, augment=True, size=24, batch_size=4, accumulate=2, epochs=3)
    return experiment.model_copy(
        update={
            "compute": FLOAT32.compute,
            "embedded": experiment.embedded.model_copy(update={"classifier": own_vit}),
            "classification": experiment.classification.model_copy(update={"settings": {"mine": setting}}),
        }
    )


@pytest.fixture
def manifest(project):
    return manifests.read_manifest(LABELED)


def small_classifier(dtype=torch.float32) -> Classifier:
    torch.manual_seed(1)
    network = vit.build(SMALL)
    network.reset_classifier(3)
    return Classifier(network, "vit.safetensors", LABELS, 24, SMALL).to(dtype)


def flat_weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in model.parameters()]).detach()


def output_bytes() -> dict[str, bytes]:
    """Every output of the setting `mine`."""
    paths = (
        WEIGHTS / "last.safetensors",
        WEIGHTS / "best.safetensors",
        PREDICTIONS,
        record_path("classification", "mine-seed1"),
    )
    return {str(path): path.read_bytes() for path in paths}


def test_accumulated_batches_equal_one_large_batch():
    """In float64, so that rounding cannot flip Adam's first step, which is the sign of each gradient."""
    pixels = random_images(30)
    labels = torch.arange(30) % 3
    losses = {}
    weights = {}
    for batch_size in (2, 30):
        model = small_classifier(torch.float64).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(2):
            batches = zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
            losses[batch_size] = train_step(model, optimizer, batches, 30, FLOAT32)
        weights[batch_size] = flat_weights(model)
    assert losses[2] == pytest.approx(losses[30])
    torch.testing.assert_close(weights[2], weights[30], rtol=1e-6, atol=1e-6)
    assert (weights[2] - flat_weights(small_classifier(torch.float64))).abs().max() > 1e-2


TRAIN = """
import sys
from pathlib import Path

import torch

from stages.classification import classifier, training
from stages.models import vit
from stages.models.compute import MixedPrecision
from stages.params.compute import Compute

torch.manual_seed(1)
model = classifier.build(vit.load("vit.safetensors"), "vit.safetensors", ("a", "b", "c"), 24).double().train()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
images = torch.randint(256, (24, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
batches = list(zip(images.split(4), (torch.arange(24) % 3).split(4)))
for step in range(60):
    training.train_step(model, optimizer, [batches[step % 6]], 4, MixedPrecision(Compute(**COMPUTE)))
classifier.save(Path(sys.argv[1]), model)
"""


def test_float64_trains_the_same_weights_with_other_cpu_instructions(tmp_path):
    """Sixty steps with the CPU's best vector instructions and with none. In float32, weights end up to 0.0007 apart."""
    torch.manual_seed(0)
    vit.save(tmp_path / "vit.safetensors", vit.build(SMALL), SMALL)
    weights = []
    for capability in ({}, {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}):
        path = tmp_path / f"{len(weights)}.safetensors"
        environment = {**os.environ, **capability, "PYTHONPATH": str(ROOT)}
        script = TRAIN.replace("COMPUTE", str(FLOAT32.compute.model_dump()))
        subprocess.run([sys.executable, "-c", script, path], cwd=tmp_path, env=environment, check=True)
        weights.append(load_file(path))
    # The saved weights are rounded to float32: a unit in the last place, beside what sixty steps make of 1e-16.
    torch.testing.assert_close(weights[0], weights[1], rtol=2**-22, atol=1e-9)


def test_uneven_batches_weight_every_image_equally():
    pixels = random_images(5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    model = small_classifier()
    batches = zip(pixels.split(3), labels.split(3), strict=True)
    total = train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, 5, FLOAT32)
    assert total == pytest.approx(F.cross_entropy(model(pixels), labels, reduction="sum").item(), rel=1e-4)


def test_an_epoch_steps_for_every_full_window_and_the_rest(project, monkeypatch):
    rows = write_images(Path("pictures"), 24)[:19]
    sizes = []

    def record_sizes(model, optimizer, batches, images, mixed):
        sizes.append((images, [len(pixels) for pixels, _ in batches]))
        return 0.0

    monkeypatch.setattr(training, "train_step", record_sizes)
    bar = finetune.tqdm(disable=True)
    setting = project.classification.settings["mine"].model_copy(update={"batch_size": 3, "accumulate": 2})
    training.train_epoch(small_classifier(), None, ImageViews(rows, 24), torch.arange(19), setting, FLOAT32, bar)
    assert sizes == [(6, [3, 3]), (6, [3, 3]), (6, [3, 3]), (1, [1])]
    assert training.steps_per_epoch(19, setting) == 4


def test_equal_steps_takes_the_steps_of_an_accumulated_epoch(project, monkeypatch):
    """19 images, batches of 3: 7 steps; with 3 batches a step 3 steps, for which single batches need 9 images."""
    accumulated = project.classification.settings["mine"].model_copy(update={"batch_size": 3, "accumulate": 3})
    setting = accumulated.model_copy(update={"accumulate": 1, "equal_steps": 3})
    assert training.steps_per_epoch(19, setting) == training.steps_per_epoch(19, accumulated) == 3
    assert training.images_per_epoch(19, setting) == 9
    assert training.images_per_epoch(19, accumulated) == 19
    # One batch may have all images of the set.
    assert training.images_per_epoch(2, setting) == 2


def test_a_run_with_equal_steps_trains_on_fewer_images(project, manifest, monkeypatch):
    setting = project.classification.settings["mine"].model_copy(update={"accumulate": 1, "equal_steps": 2})
    project.classification.settings["mine"] = setting
    images = []
    step = training.train_step

    def count_images(model, optimizer, batches, count, mixed):
        images.append(count)
        return step(model, optimizer, batches, count, mixed)

    monkeypatch.setattr(training, "train_step", count_images)
    run = finetune.finetune(project, "mine", 1, manifest)
    assert images == [4] * 9  # 18 training images, batches of 4, two a step: 3 steps in each of 3 epochs
    assert run.metrics["steps"] == 9
    assert [row["epoch"] for row in run.history] == [1, 2, 3]


def test_equal_steps_must_exceed_accumulate():
    with pytest.raises(ValueError, match=r"equal_steps = 2: must be greater than accumulate \(2\), or null"):
        Setting(lr=3e-3, augment=True, size=24, batch_size=4, accumulate=2, epochs=3, equal_steps=2)


def test_batch_norm_keeps_its_statistics_and_everything_else_trains():
    model = small_classifier()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    model.train()(random_images(4))
    after = dict(model.named_buffers())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.backbone.vit.blocks[0].training
    assert not model.eval().backbone.vit.blocks[0].training


def test_a_plain_view_is_the_central_square():
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    assert plain_view(image, 30).float().mean() == 255
    assert plain_view(image, 15).shape == (3, 15, 15)


def test_an_augmented_view_depends_only_on_its_seed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    state = torch.random.get_rng_state()
    view = augmented_view(image, 24, 5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global random state is untouched
    assert torch.equal(view, augmented_view(image, 24, 5))
    assert not torch.equal(view, augmented_view(image, 24, 6))
    assert (view.shape, view.dtype) == ((3, 24, 24), torch.uint8)


def test_a_saved_classifier_loads_and_saving_again_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit.save(Path("vit.safetensors"), vit.build(SMALL), SMALL)
    model = small_classifier().eval()
    paths = [Path(f"{name}.safetensors") for name in "abc"]
    for path in paths:
        classifier.save(path, model)
    assert len({path.read_bytes() for path in paths}) == 1
    loaded = classifier.load(paths[0])
    assert (loaded.labels, loaded.size) == (LABELS, 24)
    assert torch.equal(flat_weights(loaded), flat_weights(model))
    pixels = random_images(2)
    torch.testing.assert_close(loaded(pixels), model(pixels))
    with pytest.raises(InputError, match="vit.safetensors does not contain a classifier"):
        classifier.load(Path("vit.safetensors"))


VALID = {"source": "x.safetensors", "labels": LABELS, "size": 24, "architecture": asdict(SMALL)}


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "null",
        "{",
        json.dumps(VALID | {"labels": None}),
        json.dumps(VALID | {"labels": LABELS[1:]}),
        json.dumps(VALID | {"size": 0}),
        json.dumps(VALID | {"architecture": asdict(SMALL) | {"heads": 0}}),
        json.dumps(VALID | {"architecture": None}),
        json.dumps(VALID | {"architecture": None, "source": "../x"}),
        json.dumps(VALID | {"architecture": None, "source": "resnet18"}),
    ],
)
def test_a_classifier_with_wrong_metadata_is_one_line(tmp_path, metadata):
    path = tmp_path / "c.safetensors"
    weights = {name: weight.contiguous() for name, weight in small_classifier().backbone.vit.state_dict().items()}
    save_file(weights, path, metadata={"classifier": metadata})
    with pytest.raises(InputError) as error_info:
        classifier.load(path)
    assert str(error_info.value).startswith(f"{path}: cannot load this classifier: ")
    assert str(error_info.value).isprintable()


def test_metrics_by_hand():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1]])
    result = EvalResult(probabilities, torch.tensor([0, 0, 1, 0]), 0.5)
    history = [
        {"epoch": 1, "train_loss": 1.0, "val_loss": 0.6, "accuracy": 100.0},
        {"epoch": 2, "train_loss": 0.9, "val_loss": 0.5, "accuracy": 75.0},
    ]
    metrics = finetune.compute_metrics(history, result)
    assert (metrics["accuracy"], metrics["best_accuracy"], metrics["best_epoch"]) == (75.0, 100.0, 1)
    # Wilson (1927) for 3 of 4: (p + z^2 / 2n +- z sqrt(p(1-p)/n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.959964
    assert metrics["accuracy_low"] == pytest.approx(30.06, abs=0.01)
    assert metrics["accuracy_high"] == pytest.approx(95.44, abs=0.01)


def test_details_by_hand(manifest):
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1]])
    details = finetune.compute_details(EvalResult(probabilities, torch.tensor([0, 0, 1, 0]), 0.5), manifest)
    assert details["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert details["class_accuracy"] == {"blue": pytest.approx(200 / 3), "green": 100.0, "red": None}
    assert details["untrained_labels"] == []


def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one(project, manifest, monkeypatch):
    finetune.finetune(project, "mine", 1, manifest)
    expected = output_bytes()
    finetune.remove_state("mine-seed1")
    assert not Path("data/resume/finetune/mine-seed1").exists()
    interrupt_at_first_save(monkeypatch, lambda: finetune.finetune(project, "mine", 1, manifest))
    epochs = []
    train_epoch = finetune.train_epoch
    monkeypatch.setattr(finetune, "train_epoch", lambda *args: epochs.append(1) or train_epoch(*args))
    finetune.finetune(project, "mine", 1, manifest)
    assert len(epochs) == 2  # of 3
    assert output_bytes() == expected
    run = read_run("classification", "mine-seed1")
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert run.metrics["steps"] == 3 * 3  # 18 images, at most 8 per step
    finetune.finetune(project, "mine", 1, manifest)  # as if killed after the last epoch: no epoch is repeated
    assert len(epochs) == 2
    assert output_bytes() == expected
    predictions = pq.read_table(PREDICTIONS).to_pylist()
    assert run.metrics["accuracy"] == 100 * sum(row["predicted"] == row["label"] for row in predictions) / 6


class EpochRecorder(Recorder):
    """Keeps what a recorder's process would get."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def send(self, kind, key, **content):
        if kind == "epoch":
            self.epochs.append(content["row"])


def test_a_resumed_run_records_its_earlier_epochs_as_well(project, manifest, monkeypatch):
    interrupt_at_first_save(monkeypatch, lambda: finetune.finetune(project, "mine", 1, manifest))
    recorder = EpochRecorder()
    run = finetune.finetune(project, "mine", 1, manifest, recorder)
    assert recorder.epochs == run.history
    assert [row["epoch"] for row in run.history] == [1, 2, 3]


@pytest.mark.parametrize("damaged", ["state.pt", "best.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_saved_training_starts_over_with_one_line(project, manifest, monkeypatch, capsys, damaged, content):
    finetune.finetune(project, "mine", 1, manifest)
    expected = output_bytes()
    finetune.remove_state("mine-seed1")
    interrupt_at_first_save(monkeypatch, lambda: finetune.finetune(project, "mine", 1, manifest))
    path = Path("data/resume/finetune/mine-seed1") / damaged
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    capsys.readouterr()
    finetune.finetune(project, "mine", 1, manifest)
    assert output_bytes() == expected
    lines = capsys.readouterr().out.splitlines()
    if path.name == "state.pt" and content is None:
        assert not lines  # nothing to resume
    else:
        assert len(lines) == 1
        assert lines[0].startswith("data/resume/finetune/mine-seed1/state.pt: ")


def test_a_changed_learning_rate_starts_over(project, manifest, monkeypatch):
    interrupt_at_first_save(monkeypatch, lambda: finetune.finetune(project, "mine", 1, manifest))
    setting = project.classification.settings["mine"].model_copy(update={"lr": 1e-3, "epochs": 1})
    classification = project.classification.model_copy(update={"settings": {"mine": setting}})
    changed = project.model_copy(update={"classification": classification})
    steps = []
    monkeypatch.setattr(train_state, "save_state", lambda path, key, model, optimizers, state: steps.append(state.step))
    finetune.finetune(changed, "mine", 1, manifest)
    assert steps == [1]


def test_best_and_last_weights_are_separate_files(project, manifest, monkeypatch):
    accuracies = iter([50.0, 90.0, 10.0])

    def evaluate_with_set_accuracy(*args):
        result = evaluate(*args)
        return EvalResult(result.probabilities, result.truth, next(accuracies))

    monkeypatch.setattr(EvalResult, "accuracy", property(lambda self: self.loss))
    monkeypatch.setattr(finetune, "evaluate", evaluate_with_set_accuracy)
    run = finetune.finetune(project, "mine", 1, manifest)
    assert (run.metrics["accuracy"], run.metrics["best_accuracy"], run.metrics["best_epoch"]) == (10.0, 90.0, 2)
    assert (WEIGHTS / "best.safetensors").read_bytes() != (WEIGHTS / "last.safetensors").read_bytes()


def test_a_diverged_run_names_its_learning_rate(project, manifest, monkeypatch):
    monkeypatch.setattr(finetune, "train_epoch", lambda *args: float("nan"))
    with pytest.raises(InputError, match=r"classification.settings.mine.lr = 0.003: training diverged in epoch 1"):
        finetune.finetune(project, "mine", 1, manifest)


def test_a_run_killed_between_best_weights_and_state_resumes(project, manifest, monkeypatch):
    save_state = train_state.save_state

    def killed(path, key, model, optimizers, state):
        if state.step == 2:
            raise KeyboardInterrupt  # the second epoch's best weights are saved, its state is not
        save_state(path, key, model, optimizers, state)

    expected = finetune.finetune(project, "mine", 1, manifest)
    finetune.remove_state("mine-seed1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_state, "save_state", killed)
        finetune.finetune(project, "mine", 1, manifest)
    assert finetune.finetune(project, "mine", 1, manifest) == expected


def test_images_without_a_label_are_named(manifest):
    rows = (Row("bare", "val", "x.png"), *manifest.rows)
    with pytest.raises(InputError, match="pictures/labels.csv: 1 image has no label: bare"):
        finetune.check_labeled(Manifest(rows, "pictures", ("a", "b"), LABELS))
    same_label = tuple(Row(row.image_id, row.split, row.image, label=0) for row in manifest.rows)
    with pytest.raises(InputError, match="all images have the label 'blue'"):
        finetune.check_labeled(Manifest(same_label, "pictures", ("a", "b"), ("blue",)))


def test_validation_labels_without_training_images_are_listed(manifest):
    rows = tuple(row for row in manifest.rows if row.split == "val" or row.label != 1)
    assert finetune.untrained_labels(Manifest(rows, "pictures", ("a", "b"), LABELS)) == ["green"]


def test_a_size_that_is_not_a_multiple_of_the_patch_size_is_refused(project):
    setting = project.classification.settings["mine"].model_copy(update={"size": 30})
    with pytest.raises(
        InputError, match=r"settings.mine.size = 30: must be a multiple of the patch size 8, such as 24"
    ):
        finetune.load_pretrained(project, "mine", setting)


def test_a_source_without_labels_marks_every_output_as_skipped(project, manifest, monkeypatch, capsys):
    manifests.write_manifest(Manifest(manifest.rows, "pictures", ("a", "b")), LABELED)
    monkeypatch.setattr(finetune, "load_experiment", lambda: project)
    finetune.main("mine", 1)
    reason = "pictures has no labels (labels.csv): no classification"
    assert reason in capsys.readouterr().out
    for output in (WEIGHTS, PREDICTIONS, record_path("classification", "mine-seed1")):
        assert skip_reason(output) == reason
    with pytest.raises(InputError, match="no labels"):
        predict.select_weights(project.classification, None, "best")


def test_predict_writes_one_row_per_image_and_names_unreadable_files(project, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_experiment", lambda: project)
    finetune.finetune(project, "mine", 1, manifest)
    single = tmp_path / "single.png"
    Image.new("RGB", (13, 40)).save(single)
    predict.main([tmp_path / "pictures", single], None, "last", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        labels = {row["filename"]: row["label"] for row in csv.DictReader(file)}
    assert list(labels) == [*sorted(f"{LABELS[i % 3]}_{i}.png" for i in range(24)), "single.png"]
    validation = pq.read_table(PREDICTIONS).to_pylist()
    assert len(validation) == 6
    assert all(labels[f"{row['image_id']}.png"] == row["predicted"] for row in validation)
    (tmp_path / "pictures/broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"(?s)predict: 1 .*pictures/broken.png"):
        predict.main([tmp_path / "pictures"], "mine", "best", tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()
    with pytest.raises(InputError, match="no setting 'yours'; trained settings: mine"):
        predict.select_weights(project.classification, "yours", "best")


def test_the_best_setting_is_the_most_accurate_one_in_params(project):
    accuracies = {("a", 1): 40.0, ("a", 2): 55.0, ("b", 1): 60.0, ("b", 2): 50.0, ("no_longer_in_params", 1): 90.0}
    for (name, seed), accuracy in accuracies.items():
        weights = Path("data/models/classification") / run_key(name, seed) / "best.safetensors"
        weights.parent.mkdir(parents=True)
        weights.touch()
        write_run(Run("classification", name, "", {}, {"best_accuracy": accuracy}, seed=seed))
    setting = project.classification.settings["mine"]
    settings = dict.fromkeys(("a", "b", "not_trained"), setting)
    task = project.classification.model_copy(update={"settings": settings, "seeds": [1, 2]})
    assert predict.select_weights(task, None, "best").parent.name == "b-seed1"
    assert predict.select_weights(task, "a", "best").parent.name == "a-seed2"


def test_evaluation_keeps_the_order_of_the_images(project):
    views = ImageViews(write_images(Path("pictures"), 6), 24)
    model = small_classifier()
    result = evaluate(model, views, FLOAT32.compute)
    image_by_image = torch.cat([model(views[index][0][None]).softmax(1) for index in range(6)])
    torch.testing.assert_close(result.probabilities, image_by_image.detach(), rtol=1e-4, atol=1e-5)
    assert result.truth.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_like_float32(precision):
    """With float16, gradients are scaled, and unscaled before the step."""
    pixels = random_images(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    losses = {}
    for dtype in ("float32", precision):
        model = small_classifier().train()
        mixed = MixedPrecision(FLOAT32.compute.model_copy(update={"precision": dtype}))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        per_step = [train_step(model, optimizer, [(pixels, labels)], 6, mixed) for _ in range(8)]
        # float16: a scale that is too large skips a step (same loss again) and is halved
        losses[dtype] = list(dict.fromkeys(per_step))[:4]
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    # bfloat16 has a relative precision of 2^-8 = 0.4 %; the network is a few layers deep
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.03)
    assert losses[precision] != losses["float32"]
    assert losses[precision][-1] < 0.9 * losses[precision][0]
