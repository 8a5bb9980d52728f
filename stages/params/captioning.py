"""How captions are decoded: the cells of Tables 2 and 3."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Count, Name, Number, Rate, Section

OWNERS = {"k": ("top_k",), "p": ("top_p",), "temperature": ("top_k", "top_p"), "beams": ("beam",)}


class Cell(Section):
    """One way to decode. `k` is top-K sampling's, `p` top-p's, `temperature` both's, `beams` beam search's."""

    type: Literal["greedy", "top_k", "top_p", "beam"]
    prompt: str
    k: Count | None = None
    p: Annotated[Number, Field(gt=0, le=1)] | None = None
    temperature: Rate | None = None
    beams: Count | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> Self:
        for key, owners in OWNERS.items():
            value = getattr(self, key)
            if value is not None and self.type not in owners:
                raise ValueError(f"{key} = {value}: belongs to type {' or '.join(owners)}, not {self.type}")
            if value is None and self.type in owners:
                raise ValueError(f"{key} is missing: type {self.type} needs it")
        return self


class Captioning(Section):
    """Lengths in tokens, the prompt and the token before it included, as transformers counts them."""

    model: Literal["blip", "catr"]
    min_length: Count
    max_length: Count
    cells: dict[Name, Cell] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_length < self.min_length:
            raise ValueError(f"max_length = {self.max_length}: must be at least min_length, {self.min_length}")
        return self
