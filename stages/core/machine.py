"""The machine that a training runs on."""

import os
import platform
import sys
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str]:
    """`device` (`cpu` or `cuda`), the name of the `cpu`, that of the `gpu` if there is one, and torch's `threads`.

    A process without torch has no threads of torch's, so the number of processors is given.
    """
    machine = {"device": "cpu", "cpu": _cpu_name(), "threads": str(os.cpu_count())}
    torch = sys.modules.get("torch")  # a process without a model must not pay for the import
    if torch:
        machine["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            machine |= {"device": "cuda", "gpu": torch.cuda.get_device_name()}
    return machine


def _cpu_name() -> str:
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
