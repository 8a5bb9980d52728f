"""The GPU benchmark runs on the CPU with tiny models and prints every row; operations and shares equal hand counts."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import gpu
from benchmarks.gpu import Result, count_flops, known_peak

ROWS = {
    "ViT of 80x80: raw forward": "images/s",
    "extraction, decoded ahead": "images/s",
    "extraction, JPEG decoded by 1 processes": "images/s",
    "BLIP of 80x80: raw forward of the image tower": "images/s",
    "generate per cell, without key-value cache": "captions/s",
    "generate per cell, with key-value cache": "captions/s",
    "captioning grid of 11 cells, against that": "captions/s",
    "retrieval grid, 9 runs of 1464 pairs": "s",
    "fine-tuning at 80x80, batches of 8, decoded ahead": "images/s",
    "fine-tuning at 80x80, batches of 2, decoded ahead": "images/s",
    "fine-tuning, batches of 2, JPEG decoded by 1 processes": "images/s",
}


def test_the_small_run_prints_every_row(monkeypatch, capsys):
    monkeypatch.setattr("stages.plan.work.MIN_SECONDS", 0.01)
    gpu.main(["--small", "--workers", "1", "--batch-size", "2", "--images", "3", "--caption-images", "1"])
    output = capsys.readouterr().out
    assert f"torch {torch.__version__}, float32" in output
    for name, unit in ROWS.items():
        row = re.search(rf"^{re.escape(name)} +([\d.e+]+) {unit} .*- *$", output, re.MULTILINE)  # "-": no known peak
        assert row and float(row[1]) > 0, f"{name}\n{output}"
    for goal in (">= 0.85", ">= 0.60 (16 cores)", ">= 20"):
        assert goal in output


def test_operations_are_counted_with_attention_and_backward():
    layer = nn.Linear(3, 5, bias=False)
    inputs = torch.randn(7, 3)
    # A product of (7, 3) and (3, 5) has 7 * 3 * 5 multiplications and as many additions.
    assert count_flops(lambda: layer(inputs)) == 2 * 7 * 3 * 5
    # The weight's gradient costs as much again; the inputs need none.
    assert count_flops(lambda: layer(inputs).sum().backward()) == 2 * 2 * 7 * 3 * 5
    queries = torch.randn(1, 2, 11, 4)  # 2 heads, 11 tokens: scores, then the weighted sum
    expected = 2 * (2 * 11 * 11 * 4) * 2
    assert count_flops(lambda: F.scaled_dot_product_attention(queries, queries, queries)) == expected


def test_the_share_of_peak_is_of_operations_per_second():
    # 2e9 operations x 100 per second = 0.2 TFLOP/s; 4e12 operations in 2 seconds = 2 TFLOP/s.
    assert Result("rate", 100.0, "images/s", 2e9).share(1.0) == "20.0%"
    assert Result("seconds", 2.0, "s", 4e12).share(8.0) == "25.0%"
    assert Result("rate", 100.0, "images/s", 2e9).share(None) == "-"
    assert Result("not counted", 100.0, "captions/s").share(1.0) == "-"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", None),
    ],
)
def test_peaks_are_those_of_the_card(name, peak):
    assert known_peak(name) == peak
