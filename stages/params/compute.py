"""How models are computed: what changes numbers in their last digits, and what changes seconds alone."""

from typing import Annotated, Literal

from pydantic import Field, Strict, StrictBool

from stages.params.section import Section

Workers = Annotated[int, Strict(), Field(ge=0)]


class Compute(Section):
    """`precision` of frozen backbones and of fine-tuning; `compile` for `torch.compile`.

    `workers` cut image views in processes of their own; it moves no number and is no stage's param.
    """

    precision: Literal["float32", "bfloat16", "float16"]
    compile: StrictBool
    workers: Workers
