"""Hours, cost and storage are those of the formula by hand, and docs/scaling.md has the tables that are computed."""

import pytest
from conftest import ROOT

from benchmarks import scaling
from benchmarks.scaling import Job, Machine, significant, tables

# 4e12 operations per second at a share of 0.5, 10 cores, 1 MB written per second.
MACHINE = Machine(
    peak=8e12, peak_float32=1e12, share=0.5, share_float32=0.25, cores=10, write=1e6, efficiency=0.5, price=2.0
)


@pytest.mark.parametrize(
    ("job", "rate", "limit"),
    [
        (Job("slow model", 1e11, 1000, 100.0), 40.0, "GPU"),  # 4e12 / 1e11; decoding 1000, writing 1000
        (Job("slow images", 1e9, 1000, 3.0), 30.0, "decoding"),  # 10 x 3; GPU 4000, writing 1000
        (Job("large states", 1e9, 50_000, 100.0), 20.0, "writing"),  # 1e6 / 50000; GPU 4000, decoding 1000
        (Job("float32", 1e9, 100, None, is_float32=True), 250.0, "GPU"),  # 0.25 x 1e12 / 1e9; writing 10000
    ],
)
def test_the_slowest_part_sets_the_rate(job, rate, limit):
    assert MACHINE.rate(job) == (pytest.approx(rate, rel=1e-12), limit)


def test_hours_and_cost_by_hand():
    job = Job("slow model", 1e11, 1000, 100.0)  # 40 views per second
    # 144,000 images x 2 views / (40 x 4 GPUs x 0.5) = 3600 s
    assert MACHINE.hours(job, images=144_000, views=2, gpus=4) == pytest.approx(1.0, rel=1e-12)
    assert MACHINE.cost(job, images=144_000, views=2, gpus=4) == pytest.approx(4 * 2.0, rel=1e-12)
    assert MACHINE.cost(job, images=144_000, views=2, gpus=64) == pytest.approx(8.0, rel=1e-12)


def test_a_view_of_tokens_has_the_bytes_of_its_shape():
    stored = {job.name: job.stored for job in scaling.JOBS}
    assert stored["segmentation tokens, ViT-S/16 256"] == 196_608  # 256 tokens x 384 x 2 bytes
    assert stored["image-text states, BLIP 384"] == 886_272  # (1 + 24 x 24) tokens x 768 x 2 bytes
    assert stored["retrieval vectors, BLIP 384"] == 1_536


def test_digits():
    assert [significant(value) for value in (0.01234, 4.5678, 12_345.6, 100.0)] == ["0.0123", "4.57", "12,300", "100"]


def test_the_page_has_the_computed_tables():
    page = (ROOT / "docs/scaling.md").read_text()
    for table in tables(Machine(), views=1):
        assert str(table.markdown()) in page, f"run `python -m benchmarks.scaling` and copy: {table.caption}"
