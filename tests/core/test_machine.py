"""The machine is described as torch sees it."""

import subprocess
import sys

import torch
from conftest import ROOT

from stages.core import machine
from stages.core.machine import describe_machine


def test_threads_and_device_are_those_of_torch():
    described = describe_machine()
    assert described["threads"] == str(torch.get_num_threads())
    assert described["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert ("gpu" in described) == torch.cuda.is_available()


def test_the_processor_has_a_name_even_where_linux_gives_none(tmp_path, monkeypatch):
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nmodel name\t: AMD EPYC: 9B14\n")
    monkeypatch.setattr(machine, "CPU_INFO", cpu_info)
    assert describe_machine()["cpu"] == "AMD EPYC: 9B14"
    cpu_info.write_text("processor\t: 0\n")  # as on ARM
    assert describe_machine()["cpu"]


def test_torch_is_not_imported():
    code = "import sys, stages.core.machine as m; m.describe_machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
