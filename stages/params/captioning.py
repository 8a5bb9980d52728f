"""Params of captioning: how captions are decoded (Tables 2 and 3)."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from stages.params.section import Between, Count, Name, Section, Seeds, Temperature, expects

# The decoding types that each option belongs to.
OPTION_TYPES = {"k": ("top_k",), "p": ("top_p",), "temperature": ("top_k", "top_p"), "beams": ("beam",)}

# How `captioning.stop` ends captions: each at its own end token, or all captions of a batch with the last of them.
Stop = Literal["end_token", "batch"]

CaptionModel = Literal["blip", "catr"]

CellRun = tuple[str, int | None]  # a cell's name and a seed; no seed if the cell does not sample

TopP = Annotated[float, Strict(), Field(gt=0, le=1), expects("a number greater than 0 and at most 1")]
# Its control characters are refused where YAML is read.
Prompt = Annotated[str, Field(max_length=200), expects("a text of at most 200 characters")]


class Cell(Section):
    """One way to decode: a row of Table 2 or 3. Each option is required for its types and forbidden for others."""

    type: Literal["greedy", "top_k", "top_p", "beam"]
    prompt: Prompt
    k: Count | None = None
    p: TopP | None = None
    temperature: Temperature | None = None
    beams: Annotated[int, Between(1, 100)] | None = None

    @property
    def samples(self) -> bool:
        """Whether decoding draws random numbers."""
        return self.type in OPTION_TYPES["temperature"]

    @model_validator(mode="after")
    def _options_match_type(self) -> Self:
        for key, types in OPTION_TYPES.items():
            value = getattr(self, key)
            if value is not None and self.type not in types:
                raise ValueError(f"{key} = {value}: belongs to type {' or '.join(types)}, not {self.type}")
            if value is None and self.type in types:
                raise ValueError(f"{key} is missing: type {self.type} needs it")
        return self


class Captioning(Section):
    """Lengths in tokens, including the prompt and the start token, as transformers counts them."""

    model: CaptionModel
    min_length: Count
    max_length: Count
    stop: Stop
    seeds: Seeds
    cells: dict[Name, Cell] = Field(min_length=1)

    @property
    def runs(self) -> list[CellRun]:
        """Cells that sample run once with each seed; the others once, without a seed."""
        runs: list[CellRun] = []
        for name, cell in self.cells.items():
            runs += [(name, seed) for seed in (self.seeds if cell.samples else [None])]
        return runs

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> Self:
        if self.max_length < self.min_length:
            raise ValueError(f"max_length = {self.max_length}: must be at least min_length, {self.min_length}")
        return self

    @model_validator(mode="after")
    def _batches_are_blips(self) -> Self:
        if self.stop == "batch" and self.model != "blip":
            # CATR's images differ in size, so they are stored and decoded by size, not in the order of the list.
            raise ValueError(f"stop = 'batch': belongs to model blip, not {self.model}")
        return self
