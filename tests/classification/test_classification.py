"""Fine-tuning: what is seen, what a step is, where a killed run goes on, what is recorded."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import cut_off_when_kept
from PIL import Image
from torch.nn import functional as F

from stages.classification import classifier, finetune, predict, training
from stages.classification.classifier import Classifier
from stages.classification.pixels import ImageViews, augmented_view, plain_view
from stages.classification.training import EvalResult, evaluate, train_step
from stages.core import train_state
from stages.core.runs import read_run, record_path
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
ALONE = MixedPrecision(Compute(precision="float32", compile=False, workers=0))
SMALL = vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 8), outputs=28)


def images_of(folder: Path, count: int) -> list[Row]:
    """Pictures whose color is their label, in turn; every fourth is for validation."""
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        label, split = index % 3, "val" if index % 4 == 3 else "train"
        pixels = rng.integers(0, 90, (26, 30, 3))
        pixels[..., 2 - label] += 150
        path = folder / f"{LABELS[label]}_{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append(Row(path.stem, split, str(path), label=label, height=26, width=30, content=str(index)))
    return rows


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a small untrained ViT, 24 labeled pictures, and params that ask for little."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    manifests.write_manifest(
        Manifest(tuple(images_of(tmp_path / "pictures", 24)), "pictures", ("a", "b"), LABELS), LABELED
    )
    torch.manual_seed(0)
    vit.save(Path("vit.safetensors"), vit.build(SMALL), SMALL)
    write_checkpoint("classifier", Checkpoint("vit.safetensors", "vit.safetensors", "0"))
    root = Path(finetune.__file__).parents[2]
    asked = load_experiment(root / "params.yaml")
    own = asked.embedded.classifier.model_copy(update={"backbone": "vit.safetensors"})
    setting = Setting(lr=3e-3, augment=True, size=24, batch_size=4, accumulate=2, epochs=3)
    return asked.model_copy(
        update={
            "compute": ALONE.compute,
            "embedded": asked.embedded.model_copy(update={"classifier": own}),
            "classification": asked.classification.model_copy(update={"settings": {"mine": setting}}),
        }
    )


def small_classifier(dtype=torch.float32) -> Classifier:
    torch.manual_seed(1)
    network = vit.build(SMALL)
    network.reset_classifier(3)
    return Classifier(network, "vit.safetensors", LABELS, 24, SMALL).to(dtype)


def test_fifteen_accumulated_batches_are_one_batch_of_all(monkeypatch):
    """In double precision, so that Adam's first step, which is the sign of each gradient, cannot flip on rounding."""
    monkeypatch.setattr(vit, "normalize", lambda images, mean, std: images.double() / 255)
    pixels, labels = torch.randint(0, 256, (30, 3, 24, 24), dtype=torch.uint8), torch.arange(30) % 3
    found = []
    for batch in (2, 30):
        model = small_classifier(torch.float64).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(2):
            loss = train_step(model, optimizer, zip(pixels.split(batch), labels.split(batch), strict=True), 30, ALONE)
        found.append((loss, torch.cat([weight.flatten() for weight in model.parameters()]).detach()))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-6)
    untouched = torch.cat([weight.flatten() for weight in small_classifier(torch.float64).parameters()])
    assert (found[0][1] - untouched).abs().max() > 1e-2


def test_uneven_batches_weigh_every_image_alike():
    pixels, labels = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1])
    model = small_classifier()
    total = train_step(
        model, torch.optim.SGD(model.parameters(), lr=0.0), zip(pixels.split(3), labels.split(3), strict=True), 5, ALONE
    )
    assert total == pytest.approx(F.cross_entropy(model(pixels), labels, reduction="sum").item(), rel=1e-4)


def test_an_epoch_steps_for_every_full_window_and_what_is_left(project, monkeypatch):
    rows = tuple(images_of(Path("pictures"), 24))[:19]
    sizes = []
    monkeypatch.setattr(
        training,
        "train_step",
        lambda model, optimizer, batches, images, mixed: (
            sizes.append((images, [len(one[0]) for one in batches])) or 0.0
        ),
    )
    views = ImageViews(*finetune.files_and_labels(rows), 24)
    bar = finetune.tqdm(disable=True)
    training.train_epoch(small_classifier(), None, views, torch.arange(19), 3, 2, ALONE, bar)
    assert sizes == [(6, [3, 3]), (6, [3, 3]), (6, [3, 3]), (1, [1])]
    assert training.steps_per_epoch(19, 3, 2) == 4


def test_batch_norm_keeps_its_statistics_and_everything_else_trains():
    model = small_classifier()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    model.train()(torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8))
    assert before and all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.backbone.vit.blocks[0].training and not model.eval().backbone.vit.blocks[0].training


def test_a_plain_view_is_the_middle_square():
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    assert plain_view(image, 30).float().mean() == 255
    assert plain_view(image, 15).shape == (3, 15, 15)


def test_an_augmented_view_hangs_on_its_seed_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    state = torch.random.get_rng_state()
    one = augmented_view(image, 24, 5)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's stream is touched
    assert torch.equal(one, augmented_view(image, 24, 5))
    assert not torch.equal(one, augmented_view(image, 24, 6))
    assert (one.shape, one.dtype) == ((3, 24, 24), torch.uint8)


def test_saved_weights_make_the_same_classifier_and_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit.save(Path("vit.safetensors"), vit.build(SMALL), SMALL)
    model = small_classifier()
    for name in ("a", "b", "c"):
        classifier.save(Path(name), model)
    assert Path("a").read_bytes() == Path("b").read_bytes() == Path("c").read_bytes()
    again, pixels = classifier.load(Path("a")), torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    assert (again.labels, again.size) == (LABELS, 24)
    assert torch.equal(again(pixels), model.eval()(pixels))
    with pytest.raises(InputError, match="vit.safetensors holds no classifier"):
        classifier.load(Path("vit.safetensors"))


def test_metrics_by_hand():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1]])
    judged = EvalResult(probabilities, torch.tensor([0, 0, 1, 0]), 0.5)
    history = [
        {"epoch": 1, "train_loss": 1.0, "val_loss": 0.6, "accuracy": 100.0},
        {"epoch": 2, "train_loss": 0.9, "val_loss": 0.5, "accuracy": 75.0},
    ]
    found = finetune.metrics_of(history, judged, LABELS)
    assert (found["accuracy"], found["best_accuracy"], found["best_epoch"]) == (75.0, 100.0, 1)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found["class_accuracy"] == {"blue": pytest.approx(200 / 3), "green": 100.0, "red": None}
    # Wilson (1927) for 3 of 4: (p + z^2 / 2n +- z sqrt(p(1-p)/n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.959964
    assert found["accuracy_low"] == pytest.approx(30.06, abs=0.01)
    assert found["accuracy_high"] == pytest.approx(95.44, abs=0.01)


def test_a_killed_run_ends_in_the_numbers_of_an_undisturbed_one(project, monkeypatch):
    manifest = manifests.read_manifest(LABELED)
    files = ("data/models/classification/mine/last.safetensors", "data/models/classification/mine/best.safetensors")
    files += ("data/predictions/classification/mine.parquet", "reports/runs/classification/mine.json")
    finetune.run_setting(project, "mine", manifest)
    whole = {name: Path(name).read_bytes() for name in files}
    finetune.forget("mine")
    assert not Path("data/resume/finetune/mine").exists()
    cut_off_when_kept(monkeypatch, lambda: finetune.run_setting(project, "mine", manifest))
    trained = []
    real = finetune.train_epoch
    monkeypatch.setattr(finetune, "train_epoch", lambda *asked: trained.append(1) or real(*asked))
    finetune.run_setting(project, "mine", manifest)
    assert len(trained) == 2  # of 3 epochs
    assert {name: Path(name).read_bytes() for name in files} == whole
    run = read_run("classification", "mine")
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert run.metrics["steps"] == 3 * 3  # 18 images in steps of 8
    finetune.run_setting(project, "mine", manifest)  # killed after its last epoch: nothing is trained again
    assert len(trained) == 2
    assert {name: Path(name).read_bytes() for name in files} == whole
    predicted = pq.read_table(files[2]).to_pylist()
    assert run.metrics["accuracy"] == 100 * sum(row["predicted"] == row["label"] for row in predicted) / 6


def test_another_learning_rate_starts_from_nothing(project, monkeypatch):
    manifest = manifests.read_manifest(LABELED)
    cut_off_when_kept(monkeypatch, lambda: finetune.run_setting(project, "mine", manifest))
    setting = project.classification.settings["mine"].model_copy(update={"lr": 1e-3, "epochs": 1})
    other = project.model_copy(
        update={"classification": project.classification.model_copy(update={"settings": {"mine": setting}})}
    )
    kept = []
    monkeypatch.setattr(
        train_state, "save_state", lambda path, asked, model, optimizers, progress: kept.append(progress.step)
    )
    finetune.run_setting(other, "mine", manifest)
    assert kept == [1]


def test_best_and_last_weights_are_kept_apart(project, monkeypatch):
    accuracies = iter([50.0, 90.0, 10.0])
    real = finetune.evaluate
    monkeypatch.setattr(EvalResult, "accuracy", property(lambda self: self.loss))
    monkeypatch.setattr(
        finetune,
        "evaluate",
        lambda *asked: EvalResult(real(*asked).probabilities, real(*asked).truth, next(accuracies)),
    )
    run = finetune.run_setting(project, "mine", manifests.read_manifest(LABELED))
    assert (run.metrics["accuracy"], run.metrics["best_accuracy"], run.metrics["best_epoch"]) == (10.0, 90.0, 2)
    folder = Path("data/models/classification/mine")
    assert (folder / "best.safetensors").read_bytes() != (folder / "last.safetensors").read_bytes()


def test_a_diverged_run_names_its_learning_rate(project, monkeypatch):
    monkeypatch.setattr(finetune, "train_epoch", lambda *asked: float("nan"))
    with pytest.raises(InputError, match=r"classification.settings.mine.lr = 0.003: training diverged in epoch 1"):
        finetune.run_setting(project, "mine", manifests.read_manifest(LABELED))


def test_a_kill_between_best_weights_and_state_changes_nothing(project, monkeypatch):
    manifest, keep = manifests.read_manifest(LABELED), train_state.save_state

    def killed(path, asked, model, optimizers, progress):
        if progress.step == 2:
            raise KeyboardInterrupt  # the second epoch's best weights lie there, its state does not
        keep(path, asked, model, optimizers, progress)

    whole = finetune.run_setting(project, "mine", manifest)
    finetune.forget("mine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_state, "save_state", killed)
        finetune.run_setting(project, "mine", manifest)
    assert finetune.run_setting(project, "mine", manifest) == whole


def test_images_without_a_label_are_named(project):
    manifest = manifests.read_manifest(LABELED)
    rows = (Row("bare", "val", "x.png"), *manifest.rows)
    with pytest.raises(InputError, match="pictures/labels.csv: 1 image has no label: bare"):
        finetune.check_labeled(Manifest(rows, "pictures", ("a", "b"), LABELS))
    alike = tuple(Row(row.image_id, row.split, row.image, label=0) for row in manifest.rows)
    with pytest.raises(InputError, match="all images have the label 'blue'"):
        finetune.check_labeled(Manifest(alike, "pictures", ("a", "b"), ("blue",)))


def test_labels_that_are_never_trained_on_are_told(project):
    rows = tuple(row for row in manifests.read_manifest(LABELED).rows if row.split == "val" or row.label != 1)
    assert finetune.untrained_labels(Manifest(rows, "pictures", ("a", "b"), LABELS)) == ["green"]


def test_a_size_that_is_no_whole_patches_is_named_before_training(project):
    setting = project.classification.settings["mine"].model_copy(update={"size": 30})
    with pytest.raises(InputError, match=r"settings.mine.size = 30: must be whole patches of 8 pixels, such as 24"):
        finetune.pretrained(project, "mine", setting)


def test_a_source_without_labels_leaves_a_reason_in_place_of_every_output(project, monkeypatch, capsys):
    manifests.write_manifest(Manifest(manifests.read_manifest(LABELED).rows, "pictures", ("a", "b")), LABELED)
    monkeypatch.setattr(finetune, "load_experiment", lambda: project)
    finetune.main("mine")
    assert "pictures has no labels (labels.csv): no classification" in capsys.readouterr().out
    for output in ("data/models/classification/mine", "data/predictions/classification/mine.parquet"):
        assert skip_reason(Path(output)) == "pictures has no labels (labels.csv): no classification"
    assert skip_reason(record_path("classification", "mine"))
    with pytest.raises(InputError, match="no labels"):
        predict.chosen_weights(["mine"], None, "best")


def test_prediction_writes_a_row_an_image_and_names_what_it_cannot_read(project, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_experiment", lambda: project)
    finetune.run_setting(project, "mine", manifests.read_manifest(LABELED))
    single = tmp_path / "single.png"
    Image.new("RGB", (13, 40)).save(single)
    predict.main([tmp_path / "pictures", single], None, "last", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == [*sorted(f"{LABELS[i % 3]}_{i}.png" for i in range(24)), "single.png"]
    told = {
        f"{row['image_id']}.png": row["predicted"]
        for row in pq.read_table("data/predictions/classification/mine.parquet").to_pylist()
    }
    assert {row["filename"]: row["label"] for row in rows if row["filename"] in told} == told
    (tmp_path / "pictures/broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"(?s)1 fault.*pictures/broken.png"):
        predict.main([tmp_path / "pictures"], "mine", "best", tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()
    with pytest.raises(InputError, match="no setting 'yours'; there are: mine"):
        predict.chosen_weights(["mine"], "yours", "best")


def test_the_best_setting_is_the_most_accurate_one_that_params_ask_for(project):
    for name, accuracy in (("a", 40.0), ("b", 60.0), ("left_behind", 90.0)):
        folder = Path("data/models/classification") / name
        folder.mkdir(parents=True)
        (folder / "best.safetensors").touch()
        path = record_path("classification", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {"best_accuracy": accuracy}
        path.write_text(
            json.dumps({"task": "classification", "name": name, "stage": "", "params": {}, "metrics": metrics})
        )
    assert predict.chosen_weights(["a", "b", "not_trained"], None, "best").parent.name == "b"


def test_validation_is_judged_in_its_order(project):
    rows = tuple(images_of(Path("pictures"), 6))
    model, views = small_classifier(), ImageViews(*finetune.files_and_labels(rows), 24)
    found = evaluate(model, views, ALONE.compute)
    one_by_one = torch.cat([model(views[index][0][None]).softmax(1) for index in range(6)])
    torch.testing.assert_close(found.probabilities, one_by_one.detach(), rtol=1e-4, atol=1e-5)
    assert found.truth.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_as_single_precision_does(precision):
    """Half floats scale their gradients, and take the scale off again before the step."""
    pixels, labels = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = {}
    for kind in ("float32", precision):
        model, mixed = small_classifier().train(), MixedPrecision(ALONE.compute.model_copy(update={"precision": kind}))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        taken = [train_step(model, optimizer, [(pixels, labels)], 6, mixed) for _ in range(8)]
        losses[kind] = list(dict.fromkeys(taken))[:4]  # a scale that is too large skips a step, and is halved
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.03)
    assert losses[precision] != losses["float32"]
    assert losses[precision][-1] < 0.9 * losses[precision][0]
