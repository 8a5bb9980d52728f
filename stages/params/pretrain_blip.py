"""How the embedded BLIP is pretrained."""

from stages.params.pretrain import Pretrain
from stages.params.section import Count


class PretrainBlip(Pretrain):
    """`text_layers` of encoder and decoder each; `projection` is the width that images and captions are compared in."""

    text_layers: Count
    projection: Count
