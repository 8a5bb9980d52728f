"""Projections trained side by side equal those trained alone, and those of a plain training loop.

Trainings that are compared run in float64: rounding then stays far below the tolerance on any CPU.
"""

import pytest
import torch
from torch.nn import functional as F

from stages.params.retrieval import TrainingParams
from stages.retrieval.projections import Projections, load_projections, save_projections
from stages.retrieval.stacked_training import StackedProjections
from stages.retrieval.training import DivergedError, ProjectionTraining, TrainPairs, contrastive_loss, train

PARAMS = {
    "base": TrainingParams(lr=1e-2, weight_decay=1e-3, temperature=0.1, epochs=3, batch_size=8),
    "smaller_lr": TrainingParams(lr=1e-3, weight_decay=0.5, temperature=0.5, epochs=3, batch_size=8),
    "longer": TrainingParams(lr=1e-2, weight_decay=0, temperature=0.1, epochs=4, batch_size=8),
    "larger_batch": TrainingParams(lr=1e-2, weight_decay=0, temperature=0.1, epochs=3, batch_size=16),
}


@pytest.fixture
def pairs():
    texts = torch.randn(37, 6, dtype=torch.float64)
    mixing = torch.randn(6, 10, dtype=torch.float64)
    views = [texts @ mixing + 0.1 * torch.randn(37, 10, dtype=torch.float64) for _ in range(2)]
    return TrainPairs(torch.stack(views), texts)


@pytest.fixture
def evaluate(pairs):
    """R@1 on the training pairs."""

    @torch.no_grad()
    def recall(projections):
        similarity = projections.images(pairs.images[0]) @ projections.texts(pairs.texts).T
        return {"recall": float((similarity.argmax(1) == torch.arange(len(similarity))).double().mean())}

    return recall


def new_training(name, seed, **changes):
    torch.manual_seed(seed)
    params = PARAMS[name].model_copy(update=changes)
    return ProjectionTraining(name, params, seed, Projections(10, 6, 4).double())


def assert_close(actual, expected):
    """Equal up to rounding in float64, about 1e-16 of the largest value for each of the few dozen steps."""
    for weight, reference in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, reference, rtol=0, atol=1e-10 * float(reference.detach().abs().max()))


def test_trainings_side_by_side_equal_trainings_alone(pairs, evaluate):
    together = [new_training(name, seed) for name in PARAMS for seed in (1, 2)]
    train(together, pairs, evaluate)
    for training in together:
        alone = new_training(training.name, training.seed)
        train([alone], pairs, evaluate)
        assert [row["epoch"] for row in alone.history] == list(range(1, alone.params.epochs + 1))
        for row, expected in zip(training.history, alone.history, strict=True):
            assert row == pytest.approx(expected, rel=1e-10)
        assert_close(training.projections, alone.projections)


@pytest.mark.parametrize("name", ["smaller_lr", "longer"])
def test_training_equals_a_plain_loop(pairs, evaluate, name):
    """The loop follows the original: its views, order, schedule, loss and optimizer."""
    training = new_training(name, 5)
    train([training], pairs, evaluate)
    plain = new_training(name, 5).projections
    params = PARAMS[name]
    steps = 37 // 8  # the last partial batch is dropped
    optimizer = torch.optim.AdamW(plain.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps * params.epochs)
    generator = torch.Generator().manual_seed(5)
    targets = torch.arange(8)
    for epoch in range(params.epochs):
        order = torch.randperm(37, generator=generator)
        for step in range(steps):
            batch = order[8 * step : 8 * step + 8]
            images = F.normalize(plain.vision_proj(pairs.images[epoch % 2][batch]), dim=-1)
            texts = F.normalize(plain.text_proj(pairs.texts[batch]), dim=-1)
            logits = images @ texts.T / params.temperature
            loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert_close(training.projections, plain)


def test_training_learns(pairs, evaluate):
    training = new_training("longer", 1, epochs=40)
    before = evaluate(training.projections)["recall"]
    train([training], pairs, evaluate)
    assert training.history[-1]["recall"] > before + 0.2
    assert training.history[-1]["train_loss"] < training.history[0]["train_loss"]


def test_a_diverged_training_is_named_with_its_epoch(pairs):
    trainings = [new_training("smaller_lr", 2), new_training("base", 1, lr=1e300)]
    with pytest.raises(DivergedError) as error:
        train(trainings, pairs, lambda _: {})
    assert error.value.args == ("base", 1)


def test_contrastive_loss_by_hand():
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    texts = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    # Rows of logits (temperature 1): [1, 1] and [0, 0]; columns: [1, 0] twice, with targets 0 and 1.
    row_loss = torch.tensor(2.0, dtype=torch.float64).log()
    column_loss = (torch.tensor(1.0, dtype=torch.float64).exp() + 1).log() - 0.5
    loss = contrastive_loss(images, texts, torch.ones(1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(loss, ((row_loss + column_loss) / 2)[None], rtol=1e-12, atol=0)


def test_a_stack_projects_as_its_rows_do():
    rows = [Projections(10, 6, 4).double() for _ in range(3)]
    images = torch.randn(3, 5, 10, dtype=torch.float64)
    texts = torch.randn(3, 5, 6, dtype=torch.float64)
    stack = StackedProjections(rows)
    for index, row in enumerate(rows):  # embeddings have unit length
        torch.testing.assert_close(stack.images(images)[index], row.images(images[index]), rtol=0, atol=1e-12)
        torch.testing.assert_close(stack.texts(texts)[index], row.texts(texts[index]), rtol=0, atol=1e-12)


def test_saved_projections_load_unchanged(tmp_path):
    saved = Projections(10, 6, 4)
    save_projections(tmp_path / "p.safetensors", saved)
    loaded = load_projections(tmp_path / "p.safetensors")
    for weight, expected in zip(loaded.parameters(), saved.parameters(), strict=True):
        assert torch.equal(weight, expected)
