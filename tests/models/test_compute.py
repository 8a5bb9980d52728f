"""A GPU that torch cannot use is reported, once per process and with the reason."""

import pytest
import torch

from stages.models import compute
from stages.models.compute import get_device


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine without a GPU, whose device files and driver folders are in `tmp_path`; torch is built with CUDA."""
    monkeypatch.setattr(compute, "DEVICE_FILES", tmp_path / "dev")
    monkeypatch.setattr(compute, "DRIVER_FOLDERS", tmp_path / "proc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc").mkdir()
    compute._report_unused_gpu.cache_clear()
    yield tmp_path
    compute._report_unused_gpu.cache_clear()


def add_gpu(machine, device_file=True):
    """Create what NVIDIA's driver creates for a GPU."""
    (machine / "proc/0000:01:00.0").mkdir()
    (machine / "dev/nvidiactl").touch()
    if device_file:
        (machine / "dev/nvidia0").touch()


def fail_to_start(message):
    """A `torch.cuda.init` that raises."""

    def init():
        raise RuntimeError(message)

    return init


def test_nothing_is_said_without_a_gpu(machine, capsys):
    (machine / "dev/nvidiactl").touch()  # a driver without a GPU
    assert get_device() == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_a_usable_gpu_is_used_silently(machine, monkeypatch, capsys):
    add_gpu(machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert get_device() == torch.device("cuda")
    assert capsys.readouterr().err == ""


def test_torch_without_cuda_is_reported_once(machine, monkeypatch, capsys):
    add_gpu(machine)
    monkeypatch.setattr(torch.version, "cuda", None)
    for _ in range(3):
        assert get_device() == torch.device("cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("computing on the CPU, although this machine has an NVIDIA GPU: this torch (")
    assert "is built without CUDA" in line
    assert compute.INSTALL_TORCH in line


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_hidden_gpus_are_reported(visible, machine, monkeypatch, capsys):
    add_gpu(machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    get_device()
    assert f"CUDA_VISIBLE_DEVICES is '{visible}', which hides all GPUs; unset it" in capsys.readouterr().err


def test_a_container_without_access_is_reported(machine, capsys):
    add_gpu(machine, device_file=False)
    get_device()
    assert "`docker run --gpus all`" in capsys.readouterr().err


def test_an_old_driver_is_reported_in_its_own_words(machine, monkeypatch, capsys):
    add_gpu(machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    message = "The NVIDIA driver on your system is too old (found version 11040)."
    monkeypatch.setattr(torch.cuda, "init", fail_to_start(f"{message}\nMore lines."))
    get_device()
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "CUDA 13.2" in line
