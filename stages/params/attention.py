"""What is looked at inside the models: position embeddings, the class token's attention, the decoder's."""

from typing import Annotated

from pydantic import Field, Strict, StrictBool

from stages.params.section import Count, Name, Section, either, or_named

Index = Annotated[int, Strict()]  # of a block, layer or head; negative ones count from the last
Ids = Annotated[list[str], Field(min_length=1)]
Pictures = either(Count, Ids, "a list of image ids")  # how many, spread over the split, or which


class ExampleImages(Section):
    """Which validation images a profile shows."""

    class_token: Pictures
    captions: Pictures


class PositionEmbeddings(Section):
    """`grids`: rows and columns that the position embeddings are resampled to, beside their own grid.

    `others`: more ViTs, timm's by name or files of ours, beside the profile's.
    """

    grids: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    others: list[str]


class ClassTokenAttention(Section):
    """`setting` names the fine-tuned classifier that is looked into beside the pretrained ViT."""

    block: Index
    rollout: StrictBool
    setting: Name


class CaptionAttention(Section):
    """Whose words: a cell of `captioning.cells`. `head` is a number, or `mean` of all."""

    cell: Name
    layer: Index
    head: or_named(Index, "mean")


class Attention(Section):
    """The pictures of attention, and what is measured on the validation split with them."""

    positions: PositionEmbeddings
    class_token: ClassTokenAttention
    captions: CaptionAttention
