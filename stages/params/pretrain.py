"""Params of the embedded ViT's pretraining."""

from stages.params.recipe import Recipe
from stages.params.section import Weight


class Pretrain(Recipe):
    """`place_weight`: of the loss of places. `position_scale`: amplitude of the sine positions at the start."""

    place_weight: Weight
    position_scale: Weight
