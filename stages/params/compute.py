"""How runs are computed: precision, compilation, data loading processes, live recording."""

from typing import Annotated, Literal

from pydantic import StrictBool

from stages.params.section import Between, Section

Workers = Annotated[int, Between(0, 256)]


class Compute(Section):
    """`precision` applies to frozen backbones and to fine-tuning; `compile` to frozen backbones.

    `workers` is the number of data loading processes; `live` records runs in MLflow while they train. Both change no
    result, so no stage in `dvc.yaml` depends on them.
    """

    precision: Literal["float32", "bfloat16", "float16"]
    compile: StrictBool
    workers: Workers
    live: StrictBool
