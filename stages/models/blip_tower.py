"""BLIP's image tower as a frozen ViT of timm, for the tasks that take any ViT."""

from dataclasses import replace

from torch import nn
from transformers import BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipVisionModel

from stages.models import blip, vit


def load_tower(source: str, random: bool = False) -> vit.Backbone:
    """The image tower of the BLIP in a folder, or on the hub, with its normalization of pixels.

    With `random`, its weights are new. Raises as `blip.load` does, and `ValueError` if it is not a plain ViT.
    """
    backbone = as_vit(blip.load(BlipForConditionalGeneration, source).vision_model, source, random)
    preprocessing = blip.load_preprocessing(source)
    backbone.mean = preprocessing.mean
    backbone.std = preprocessing.std
    return backbone


def as_vit(tower: BlipVisionModel, name: str, random: bool = False) -> vit.Backbone:
    """A ViT with the weights of an image tower; `name` is for error messages.

    Its output is the tower's: both apply their last norm to the output of the last block.
    """
    weights = {blip.timm_key(key): weight for key, weight in tower.state_dict().items()}
    stem = getattr(tower.config, "stem", None)
    architecture = None
    if stem is None:
        model = vit.build_plain_vit(weights, name, random=random)
    else:
        architecture = replace(vit.Architecture.from_dict(stem), outputs=0)  # the tower has no layer on its class token
        model = vit.build(architecture)
        if not random:
            model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = tower.config.layer_norm_eps
    return vit.Backbone(model, architecture)
