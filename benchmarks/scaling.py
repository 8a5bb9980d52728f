"""Hours, storage and cost of encoding 1 M and 100 M images, from rates per GPU: the tables of docs/scaling.md.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --share 0.5 --cores 32 --price 2.5

Computes, measures nothing. For one pass over `images` with `views` of each:

    rate     = the lowest of: share x peak / operations per view        what the GPU computes
                              cores x decoded views per core and second what its CPU cores decode
                              written bytes per second / bytes per view what its storage takes
    hours    = images x views / (rate x GPUs x efficiency) / 3600
    cost     = hours x GPUs x price
    storage  = images x views x bytes per view, and its price per month

`benchmarks.gpu` measures the share of peak and the decoding on a machine with a GPU.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from stages.plan.__main__ import format_bytes
from stages.report.tables import Table

IMAGES = (1_000_000, 100_000_000)
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Job:
    """One pass over images: operations, stored bytes and decoded views per core and second, each per view.

    `decoded_per_core` is None where no image is read. `is_float32` is set where the pipeline computes in float32
    whatever `compute.precision`.
    """

    name: str
    operations: float
    stored: int
    decoded_per_core: float | None
    is_float32: bool = False


# Operations are those that `benchmarks.gpu.count_flops` counts at the paper profile's sizes, for captions of 20 tokens,
# prompt included. Decoding was measured on JPEGs of 420x420 (44 kB each), per second of CPU time of one core of an AMD
# EPYC: resized and cropped to 256x256, or resized to 384x384.
JOBS = (
    Job("segmentation tokens, ViT-S/16 256", 12.28e9, 256 * 384 * 2, 334.0),
    Job("image-text states, BLIP 384", 110.97e9, 577 * 768 * 2, 228.0),
    Job("retrieval vectors, BLIP 384", 110.97e9, 768 * 2, 228.0),
    Job("captions, 1 greedy cell, from states", 21.33e9, 60, None, is_float32=True),  # 60: of text
    Job("captions, 11 cells, from states", 172.8e9, 11 * 60, None, is_float32=True),
)


# Images per second on 2 CPU cores, as `make plan PROFILE=paper` measured them (docs/paper-profile.md): tokens, states,
# and 4.01 captions per second, for 11 cells per image.
CPU_RATES = {JOBS[0].name: 13.4, JOBS[1].name: 1.16, JOBS[4].name: 4.01 / 11}


@dataclass(frozen=True)
class Machine:
    """One GPU with its share of a machine: `cores` to decode, `write` bytes per second of storage.

    `peak` and `peak_float32` are operations per second, without sparsity and without TF32. `share` is the share of
    `peak` that a forward pass reaches, `share_float32` that of decoding captions. `efficiency` is what is left of the
    rate from end to end. `price` is in dollars per GPU and hour, `storage_price` in dollars per TB and month.
    """

    peak: float = 989e12
    peak_float32: float = 67e12
    share: float = 0.4
    share_float32: float = 0.1
    cores: int = 16
    write: float = 1e9
    efficiency: float = 0.9
    price: float = 3.0
    storage_price: float = 23.0

    def limits(self, job: Job) -> dict[str, float]:
        """Views per second that each part of the machine can keep up with."""
        peak = self.share_float32 * self.peak_float32 if job.is_float32 else self.share * self.peak
        limits = {"GPU": peak / job.operations}
        if job.decoded_per_core is not None:
            limits["decoding"] = self.cores * job.decoded_per_core
        limits["writing"] = self.write / job.stored
        return limits

    def rate(self, job: Job) -> tuple[float, str]:
        """Views per second of one GPU, and the part of the machine that limits it."""
        limits = self.limits(job)
        slowest = min(limits, key=limits.__getitem__)
        return limits[slowest], slowest

    def hours(self, job: Job, images: int, views: int, gpus: int) -> float:
        """Hours of `gpus` together."""
        return images * views / (self.rate(job)[0] * gpus * self.efficiency) / 3600

    def cost(self, job: Job, images: int, views: int, gpus: int) -> float:
        """Dollars for all GPUs."""
        return self.hours(job, images, views, gpus) * gpus * self.price


def significant(value: float) -> str:
    """Three significant digits without an exponent: `0.0123`, `4.56`, `12,300`."""
    return f"{float(f'{value:.3g}'):,.10g}"


def rates_table(machine: Machine) -> Table:
    """Views per second of one GPU, and what limits them."""
    rows = []
    for job in JOBS:
        limits = machine.limits(job)
        rate, slowest = machine.rate(job)
        cells = [significant(limits[part]) if part in limits else "-" for part in ("GPU", "decoding", "writing")]
        rows.append((job.name, format_bytes(job.stored), *cells, significant(rate), slowest))
    columns = ("Job", "bytes per view", "GPU", "decoding", "writing", "rate", "limit")
    return Table.from_rows("Views per second of one GPU", columns, rows)


def hours_table(machine: Machine, images: int, views: int) -> Table:
    """Hours by number of GPUs, cost and storage."""
    rows = []
    for job in JOBS:
        hours = [significant(machine.hours(job, images, views, gpus)) for gpus in GPUS]
        cost = significant(machine.cost(job, images, views, gpus=1))  # the same for any number of GPUs
        stored = images * views * job.stored
        monthly = significant(machine.storage_price * stored / 1e12)
        rows.append((job.name, *hours, cost, format_bytes(stored), monthly))
    hours_columns = [f"{gpus} GPU{'s' if gpus > 1 else ''} (h)" for gpus in GPUS]
    columns = ("Job", *hours_columns, "USD", "storage", "USD per month")
    view_text = "one view" if views == 1 else f"{views} views"
    return Table.from_rows(f"{images / 1e6:g} M images, {view_text} of each", columns, rows)


def cpu_table(views: int) -> Table:
    """Hours without a GPU, from measured rates."""
    rows = []
    for name, rate in CPU_RATES.items():
        hours = [significant(images * views / rate / 3600) for images in IMAGES]
        rows.append((name, significant(rate), *hours))
    columns = ("Job", "images/s", *(f"{images / 1e6:g} M images (h)" for images in IMAGES))
    return Table.from_rows("2 CPU cores, measured", columns, rows)


def tables(machine: Machine, views: int) -> list[Table]:
    """All tables of docs/scaling.md that are computed."""
    return [cpu_table(views), rates_table(machine), *(hours_table(machine, images, views) for images in IMAGES)]


def main(arguments: Sequence[str] | None = None) -> None:
    default = Machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=1, help="of each image (1)")
    parser.add_argument("--peak", type=float, default=default.peak / 1e12, help="TFLOP/s in bfloat16 (H100 SXM: 989)")
    parser.add_argument("--peak-float32", type=float, default=default.peak_float32 / 1e12, help="TFLOP/s (67)")
    parser.add_argument("--share", type=float, default=default.share, help="of the peak, in forward passes (0.4)")
    parser.add_argument("--share-float32", type=float, default=default.share_float32, help="in decoding (0.1)")
    parser.add_argument("--cores", type=int, default=default.cores, help="that decode images, per GPU (16)")
    parser.add_argument("--write", type=float, default=default.write / 1e9, help="GB/s of storage, per GPU (1)")
    parser.add_argument("--efficiency", type=float, default=default.efficiency, help="end to end (0.9)")
    parser.add_argument("--price", type=float, default=default.price, help="$ per GPU and hour (3.00, May 2026)")
    parser.add_argument("--storage-price", type=float, default=default.storage_price, help="$ per TB and month (23)")
    args = parser.parse_args(arguments)
    machine = Machine(
        peak=args.peak * 1e12,
        peak_float32=args.peak_float32 * 1e12,
        share=args.share,
        share_float32=args.share_float32,
        cores=args.cores,
        write=args.write * 1e9,
        efficiency=args.efficiency,
        price=args.price,
        storage_price=args.storage_price,
    )
    for table in tables(machine, args.views):
        print(f"{table.markdown()}\n")


if __name__ == "__main__":
    main()
