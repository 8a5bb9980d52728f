"""Params of the embedded ViT's pretraining."""

from stages.params.recipe import Recipe
from stages.params.section import Weight


class Pretrain(Recipe):
    """`object_weight`: of the losses of places and colors. `position_scale`: initial amplitude of sine positions."""

    object_weight: Weight
    position_scale: Weight
