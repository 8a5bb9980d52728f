"""Params of the attention stages: position embeddings, the class token's attention, the caption decoder's."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from stages.params.captioning import CaptionModel
from stages.params.model_source import ModelSource
from stages.params.section import Between, Count, Name, Section, expects

# Of a block, layer or head, from 0; negative numbers count from the last.
Index = Annotated[int, Between(-1000, 1000)]
# The number of images, spread evenly over the split, or their IDs.
ExampleIds = (
    Annotated[int, Between(1, 1000)] | Annotated[list[str], Field(min_length=1), expects("a list of image IDs")]
)
# In position embeddings; every embedding is compared with every other.
GridSide = Annotated[int, Between(1, 100)]


class ExampleImages(Section):
    """The validation images that a profile's attention figures show."""

    class_token: ExampleIds
    captions: ExampleIds


class PositionEmbeddings(Section):
    """`grids`: (rows, columns) to which position embeddings are resampled, in addition to their own grid.

    `others`: ViTs besides the profile's, as timm names or checkpoint files.
    """

    grids: list[Annotated[list[GridSide], Field(min_length=2, max_length=2)]]
    others: list[ModelSource]


class ClassTokenAttention(Section):
    """`setting` names the fine-tuned classifier that is compared with the pretrained ViT.

    `images` is how many of the validation images with masks are measured, spread evenly over them.
    """

    block: Index
    rollout: StrictBool
    images: Count | Literal["all"]
    setting: Name


class CaptionAttention(Section):
    """`cell` is a key of `captioning.cells`: its captions' words are shown. `mean` averages over all heads.

    `also` is another captioner whose captions' words are shown for the example images; null for none.
    """

    cell: Name
    layer: Index
    head: Index | Literal["mean"]
    also: CaptionModel | None


class Attention(Section):
    """Attention maps and position embeddings: what the figures show and what is measured on the validation split."""

    positions: PositionEmbeddings
    class_token: ClassTokenAttention
    captions: CaptionAttention
