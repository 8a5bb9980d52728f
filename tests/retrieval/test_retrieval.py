"""Projections trained side by side end as if trained alone, and as a plain training loop would have them."""

import pytest
import torch
from torch.nn import functional as F

from stages.params.retrieval import TrainingParams
from stages.retrieval.projections import Projections, StackedProjections, load_projections, save_projections
from stages.retrieval.training import DivergedError, Pairs, ProjectionTraining, contrastive_loss, train

RECIPES = {
    "one": TrainingParams(lr=1e-2, weight_decay=1e-3, temperature=0.1, epochs=3, batch_size=8),
    "other_lr": TrainingParams(lr=1e-3, weight_decay=0.5, temperature=0.5, epochs=3, batch_size=8),
    "longer": TrainingParams(lr=1e-2, weight_decay=0, temperature=0.1, epochs=4, batch_size=8),
    "wider": TrainingParams(lr=1e-2, weight_decay=0, temperature=0.1, epochs=3, batch_size=16),
}


@pytest.fixture
def pairs():
    texts, mixed = torch.randn(37, 6), torch.randn(6, 10)
    return Pairs(torch.stack([texts @ mixed + 0.1 * torch.randn(37, 10) for _ in range(2)]), texts)


def fresh(name, seed):
    torch.manual_seed(seed)
    return ProjectionTraining(name, RECIPES[name], seed, Projections(10, 6, 4), [])


def judge(pairs):
    def evaluate(projections):
        with torch.no_grad():
            similar = projections.images(pairs.images[0]) @ projections.texts(pairs.texts).T
        return {"right": float((similar.argmax(1) == torch.arange(len(similar))).float().mean())}

    return evaluate


def test_stacked_equals_alone(pairs):
    together = [fresh(name, seed) for seed, name in enumerate(RECIPES)]
    train(together, pairs, judge(pairs))
    for seed, name in enumerate(RECIPES):
        alone = fresh(name, seed)
        train([alone], pairs, judge(pairs))
        assert alone.history == together[seed].history
        assert [row["epoch"] for row in alone.history] == list(range(1, RECIPES[name].epochs + 1))
        for one, other in zip(alone.projections.parameters(), together[seed].projections.parameters(), strict=True):
            assert torch.equal(one, other)


def test_training_is_the_protocols(pairs):
    """A loop written straight from the protocol: its views, order, schedule, loss and optimizer."""
    ours = fresh("longer", 5)
    train([ours], pairs, judge(pairs))
    plain, recipe = fresh("longer", 5).projections, RECIPES["longer"]
    optimizer = torch.optim.AdamW(plain.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = 37 // 8  # the last partial batch is dropped
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps * recipe.epochs)
    order = torch.Generator().manual_seed(5)
    for epoch in range(recipe.epochs):
        shuffled = torch.randperm(37, generator=order)
        for step in range(steps):
            some = shuffled[8 * step : 8 * step + 8]
            images = F.normalize(plain.vision_proj(pairs.images[epoch % 2][some]), dim=-1)
            texts = F.normalize(plain.text_proj(pairs.texts[some]), dim=-1)
            logits = images @ texts.T / recipe.temperature
            loss = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    for one, other in zip(ours.projections.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_training_learns(pairs):
    one = fresh("longer", 1)
    one.recipe = one.recipe.model_copy(update={"epochs": 40})
    before = judge(pairs)(one.projections)["right"]
    train([one], pairs, judge(pairs))
    assert one.history[-1]["right"] > before + 0.2
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]


def test_a_training_that_diverges_is_named_with_its_epoch(pairs):
    one = fresh("one", 1)
    one.recipe = one.recipe.model_copy(update={"lr": 1e30})
    with pytest.raises(DivergedError) as caught:
        train([fresh("other_lr", 2), one], pairs, lambda _: {})
    assert caught.value.args == ("one", 1)


def test_contrast_by_hand():
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    texts = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # Rows of logits (T = 1): [1, 1] and [0, 0]; columns: [1, 0] twice, of which place 0 and place 1 are right.
    rows = torch.tensor(2.0).log()
    columns = (torch.tensor(1.0).exp() + 1).log() - 0.5
    assert contrastive_loss(images, texts, torch.ones(1, 1, 1)) == pytest.approx(float((rows + columns) / 2))


def test_a_stack_projects_as_its_rows_do():
    rows = [Projections(10, 6, 4) for _ in range(3)]
    images, texts = torch.randn(3, 5, 10), torch.randn(3, 5, 6)
    stack = StackedProjections(rows)
    for place, row in enumerate(rows):
        assert torch.allclose(stack.images(images)[place], row.images(images[place]), atol=1e-6)
        assert torch.allclose(stack.texts(texts)[place], row.texts(texts[place]), atol=1e-6)


def test_projections_round_trip(tmp_path):
    made = Projections(10, 6, 4)
    save_projections(tmp_path / "p.safetensors", made)
    again = load_projections(tmp_path / "p.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
