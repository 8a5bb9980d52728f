"""The models of a profile for measuring, with random weights if they are not on this machine yet."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration

from stages.models import blip, vit
from stages.models.blip_original import SIDE
from stages.models.blip_tower import as_vit
from stages.params.backbones import ComparedBackbone
from stages.params.experiment import Experiment
from stages.params.model_source import is_checkpoint_file, split_revision
from stages.segmentation.extract_backbone import use_layers

# BLIP's two image towers, of ViT-B/16 and ViT-L/16
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
PATCH_SIZE = 16
VOCABULARY = 30524  # BERT's 30522 word pieces and two tokens of BLIP's


@dataclass(frozen=True)
class Models:
    """The models of a profile; None for a ViT whose architecture is not known before it is downloaded."""

    backbone: vit.Backbone | None
    classifier: vit.Backbone | None
    compared: dict[str, vit.Backbone | None]  # by key of `backbones`
    blip: BlipForConditionalGeneration  # with the image tower and the text decoder
    side: int  # of BLIP's square images, in pixels

    @property
    def blip_dim(self) -> int:
        """The width of BLIP's image states."""
        return self.blip.vision_model.config.hidden_size

    @property
    def blip_tokens(self) -> int:
        """Tokens per image of BLIP, with the class token."""
        patch_size = self.blip.vision_model.config.patch_size
        assert isinstance(patch_size, int)  # of square patches
        return 1 + (self.side // patch_size) ** 2


def build_models(experiment: Experiment) -> Models:
    """The models that the params name. Raises `ValueError` for a name that timm does not know."""
    active = experiment.active
    backbone = build_vit(active.backbone)
    classifier = build_vit(active.classifier.backbone)
    model, side = build_blip(active.blip)
    compared = {}
    for name, params in experiment.backbones.items():
        if params.source == "blip" and not active.has_captions:
            continue  # nor does the run use it
        compared[name] = build_compared(params, name, backbone, model)
    return Models(backbone, classifier, compared, model, side)


def build_blip(source: str) -> tuple[BlipForConditionalGeneration, int]:
    """A BLIP from its folder, or one of its size with random weights; and the side of its images in pixels."""
    if Path(source).is_dir():
        return blip.load(BlipForConditionalGeneration, source), blip.load_preprocessing(source).side
    # `capfilt_large` in a checkpoint's name is the size of the captioner that filtered its data, not its own.
    is_large = "large" in source.rpartition("/")[2].replace("capfilt_large", "")
    vision = {**(LARGE if is_large else BASE), "image_size": SIDE, "patch_size": PATCH_SIZE}
    text = {**BASE, "encoder_hidden_size": vision["hidden_size"], "vocab_size": VOCABULARY}
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text)).eval(), SIDE


def build_compared(
    params: ComparedBackbone, name: str, own: vit.Backbone | None, model: BlipForConditionalGeneration
) -> vit.Backbone | None:
    """The compared backbone `backbones.NAME`; `own` and `model` are the profile's backbone and BLIP."""
    if params.source == "blip":
        backbone: vit.Backbone | None = as_vit(model.vision_model, "BLIP")
    else:
        backbone = deepcopy(own) if params.source == "backbone" else build_vit(params.source)
    if backbone:
        use_layers(backbone, params, name)
    return backbone


def build_vit(source: str) -> vit.Backbone | None:
    """A ViT from its file, or timm's of that name with random weights."""
    if is_checkpoint_file(source):
        return vit.load(source) if Path(source).is_file() else None
    name = split_revision(source)[0]
    vit.pretrained_config(name)  # raises `ValueError` with the nearest names if timm does not know it
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # not a ViT: it does not know `dynamic_img_size`
        return None
    return vit.Backbone(network) if isinstance(network, VisionTransformer | Eva) else None


def weight_bytes(model: nn.Module) -> int:
    """The size of a model's weights in float32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters())
