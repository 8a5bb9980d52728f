"""A saved training resumes only with the same key; weights files are reproducible."""

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from stages.core.messages import join_names
from stages.core.stage import InputError
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


def new_training():
    """An untrained model and optimizer."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


class Payload:
    """Creates a file where it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def other_model(path):
    model = nn.Linear(7, 2)
    save_state(path, KEY, model, [torch.optim.AdamW(model.parameters())], TrainState(step=3))


def flip_byte_of_weights(path, weight):
    content = bytearray(path.read_bytes())
    content[content.index(weight.detach().numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path, _: path.write_bytes(b""),
    "garbage": lambda path, _: path.write_bytes(b"garbage" * 99),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-10]),
    "flipped byte": lambda path, model: flip_byte_of_weights(path, model.weight),
    "list": lambda path, _: torch.save([1, 2], path),
    "null": lambda path, _: torch.save(None, path),
    "no state": lambda path, _: torch.save({"key": KEY}, path),
    "other model": lambda path, _: other_model(path),
    "executable": lambda path, _: torch.save(Payload(path.with_name("executed")), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_ignored_with_one_line(damage, tmp_path, training, capsys):
    """Training starts over, from the weights that it would have had without a state."""
    path = tmp_path / "state.pt"
    save_state(path, KEY, training[0], [training[1]], TrainState(step=3))
    damage(path, training[0])
    model, optimizer = new_training()
    assert load_state(path, KEY, model, [optimizer]) == TrainState()
    assert torch.equal(model.weight, new_training()[0].weight)
    assert not optimizer.state
    output = capsys.readouterr().out
    assert output.startswith(f"{path}: damaged, or not of this training (")
    assert output.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    save_state(path, KEY, training[0], [training[1]], TrainState(step=4))
    assert load_state(path, KEY, model, [optimizer]).step == 4


def test_a_full_disk_is_named_and_the_last_state_stays(tmp_path, training, monkeypatch):
    """A limit on the size of files stands for a full disk: a write fails after some bytes."""
    model, optimizer = training
    path = tmp_path / "state.pt"
    save_state(path, KEY, model, [optimizer], TrainState(step=3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # its default ends the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError) as error_info:
            save_state(path, KEY, model, [optimizer], TrainState(step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(error_info.value).startswith(f"{path}: the training state cannot be saved: File too large; free space")
    assert list(tmp_path.iterdir()) == [path]
    assert load_state(path, KEY, model, [optimizer]).step == 3


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
