"""Params of the attention stages: position embeddings, the class token's attention, the caption decoder's."""

from typing import Annotated, Literal

from pydantic import Field, Strict, StrictBool

from stages.params.section import Count, Name, Section, expects

# Of a block, layer or head, from 0; negative numbers count from the last.
Index = Annotated[int, Strict(), expects("an integer")]
# The number of images, spread evenly over the split, or their IDs.
ExampleIds = Count | Annotated[list[str], Field(min_length=1), expects("a list of image IDs")]


class ExampleImages(Section):
    """The validation images that a profile's attention figures show."""

    class_token: ExampleIds
    captions: ExampleIds


class PositionEmbeddings(Section):
    """`grids`: (rows, columns) to which position embeddings are resampled, in addition to their own grid.

    `others`: ViTs besides the profile's, as timm names or checkpoint files.
    """

    grids: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    others: list[str]


class ClassTokenAttention(Section):
    """`setting` names the fine-tuned classifier that is compared with the pretrained ViT."""

    block: Index
    rollout: StrictBool
    setting: Name


class CaptionAttention(Section):
    """`cell` is a key of `captioning.cells`: its captions' words are shown. `mean` averages over all heads."""

    cell: Name
    layer: Index
    head: Index | Literal["mean"]


class Attention(Section):
    """Attention maps and position embeddings: what the figures show and what is measured on the validation split."""

    positions: PositionEmbeddings
    class_token: ClassTokenAttention
    captions: CaptionAttention
