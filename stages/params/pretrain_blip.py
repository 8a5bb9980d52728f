"""Params of the embedded BLIP's pretraining."""

from stages.params.pretrain import Pretrain
from stages.params.section import Count


class PretrainBlip(Pretrain):
    """`text_layers`: layers of the text encoder and of the decoder. `projection`: dimension of the shared embedding."""

    text_layers: Count
    projection: Count
