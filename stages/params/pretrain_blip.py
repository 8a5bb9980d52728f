"""Params of the embedded BLIP's pretraining."""

from typing import Annotated

from stages.params.recipe import Recipe
from stages.params.section import Between


class PretrainBlip(Recipe):
    """`text_layers`: layers of the text encoder and of the decoder. `projection`: dimension of the shared embedding."""

    text_layers: Annotated[int, Between(1, 100)]
    projection: Annotated[int, Between(1, 4096)]
