"""Exchanges between two processes by hand, and how their errors end them."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from stages.core import processes

EXCHANGE = """
import torch
from torch import nn

from stages.core import processes
from stages.core.stage import InputError

with processes.training_stage("train"):
    rank = processes.rank()
    assert (processes.count(), processes.is_main()) == (2, rank == 0)
    assert list(processes.share(range(10, 15))) == [[10, 12, 14], [11, 13]][rank]

    # Five rows in their order. The loss has one part per process: that of its rank + 1 times the sum of all rows.
    rows = processes.share(torch.arange(10.0).view(5, 2)).clone().requires_grad_()
    gathered = processes.all_gather(rows, 5)
    assert torch.equal(gathered, torch.arange(10.0).view(5, 2))
    ((rank + 1) * gathered.sum()).backward()
    assert torch.equal(rows.grad, torch.full((3 - rank, 2), 3.0))

    # One row for two processes, and integers.
    one = processes.share(torch.tensor([[7, 8]]))
    assert len(one) == 1 - rank
    assert processes.all_gather(one, 1).tolist() == [[7, 8]]

    # Only the main process has a gradient, and only of one weight.
    model = nn.Linear(2, 1)
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    if rank == 0:
        model.weight.sum().mul(5).backward()
    processes.all_reduce_gradients([*model.parameters(), frozen])
    assert model.weight.grad.tolist() == [[5, 5]]
    assert model.bias.grad.tolist() == [0]
    assert frozen.grad is None

    content = processes.broadcast({"step": rank, "weights": [torch.full((2,), float(rank))]})
    assert content["step"] == 0
    assert content["weights"][0].tolist() == [0, 0]
    processes.WAIT_SECONDS = 0.1
    raise InputError("all exchanges are right")
"""


def test_exchanges_by_hand_and_one_line_for_the_error_of_both(tmp_path):
    """Without `torchrun`, as under a cluster's launcher: the main process holds the store."""
    (tmp_path / "exchange.py").write_text(EXCHANGE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = {"OMP_NUM_THREADS": "1"}  # Accelerate warns without it; `torchrun` sets it
    launched = {
        **threads,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "exchange.py"],
            env={**os.environ, **launched, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = "".join(process.communicate(timeout=120)[1] for process in started)
    assert errors == "train: all exchanges are right\n"
    assert [process.returncode for process in started] == [2, 2]


def test_one_process_exchanges_nothing():
    values = torch.ones(3, requires_grad=True)
    assert processes.all_reduce(values) is values
    assert processes.all_gather(values, 3) is values
    assert processes.broadcast(values) is values
    assert processes.share(range(4)) == range(4)
    assert processes.is_main()


def test_a_world_size_without_a_launcher_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in processes.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as exit_info, processes.training_stage("train"):
        raise AssertionError
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("train: WORLD_SIZE = 2 asks for several processes, but RANK, LOCAL_RANK")


def test_accelerate_is_not_imported_for_one_process():
    check = (
        "import sys, stages.classification.finetune, stages.pretraining.pretrain; sys.exit('accelerate' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
