"""A saved training resumes only with the same key; weights files are reproducible."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from stages.core.messages import join_names
from stages.core.train_state import TrainState, load_state, save_state
from stages.core.weights_file import save_weights

KEY = {"lr": 0.1, "features": "a1b2"}


@pytest.fixture
def training():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_state_round_trip_and_other_key(tmp_path, training):
    model, optimizer = training
    path = tmp_path / "state.pt"
    state = TrainState(step=3, seconds=1.5, curve=[{"epoch": 1, "loss": 2.0}])
    save_state(path, KEY, model, [optimizer], state)
    resumed = nn.Linear(3, 2)
    resumed_optimizer = torch.optim.AdamW(resumed.parameters())
    assert load_state(path, KEY | {"lr": 0.2}, resumed, [resumed_optimizer]) == TrainState()
    assert not resumed_optimizer.state
    assert load_state(path, KEY, resumed, [resumed_optimizer]) == state
    assert torch.equal(resumed.weight, model.weight)
    assert len(resumed_optimizer.state) == 2
    assert load_state(tmp_path / "missing.pt", KEY, resumed, [resumed_optimizer]) == TrainState()


def test_equal_weights_give_equal_files(tmp_path, training):
    model, _ = training
    tied = model.state_dict() | {"tied": model.weight.T}
    for name in ("first", "second"):
        save_weights(tmp_path / name, tied, head={"kind": "linear", "dim": 3})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with safe_open(tmp_path / "first", framework="pt") as file:
        assert json.loads(file.metadata()["head"]) == {"kind": "linear", "dim": 3}
        assert torch.equal(file.get_tensor("tied"), model.weight.T)
    with pytest.raises(ValueError, match="one metadata entry at most, got head, classes"):
        save_weights(tmp_path / "third", tied, head=1, classes=2)


def test_long_lists_of_names_are_cut():
    assert join_names(["a", "b"]) == "a, b"
    assert join_names(["a", "b", "c"], limit=1) == "a and 2 more"
