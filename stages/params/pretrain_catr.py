"""Params of the embedded CATR's pretraining."""

from typing import Annotated

from stages.params.recipe import Recipe
from stages.params.section import Between, Weight


class PretrainCatr(Recipe):
    """`layers`: of the encoder and of the decoder. `presence_weight`: of the loss of presence of classes.

    `object_weight`: of the losses of places and colors.
    """

    layers: Annotated[int, Between(1, 100)]
    presence_weight: Weight
    object_weight: Weight
