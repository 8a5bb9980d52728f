"""Models of the right size with random weights, where the true ones are not on this machine yet."""

from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from stages.models import blip, vit
from stages.models.blip_original import SIDE
from stages.params.experiment import Experiment
from stages.params.model_source import is_checkpoint_file, split_revision

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
VOCABULARY = 30524


@dataclass(frozen=True)
class Models:
    """None stands for a model whose size nobody knows before it is downloaded."""

    backbone: vit.Backbone | None
    classifier: vit.Backbone | None
    blip: BlipForImageTextRetrieval
    decoder: BlipTextLMHeadModel
    side: int  # of BLIP's images, in pixels

    @property
    def blip_tokens(self) -> int:
        """Tokens of an image of BLIP's, the class token among them."""
        return 1 + (self.side // self.blip.config.vision_config.patch_size) ** 2

    @property
    def classifier_bytes(self) -> int:
        """Weights of the classifier, in single precision."""
        return 0 if self.classifier is None else 4 * sum(one.numel() for one in self.classifier.state_dict().values())


def models_of(experiment: Experiment) -> Models:
    """The profile's."""
    active = experiment.active
    if Path(active.blip).is_dir():
        retriever, decoder = blip.load(BlipForImageTextRetrieval, active.blip), blip.load_decoder(active.blip)
        side = blip.load_preprocessing(active.blip).side
    else:
        tower = LARGE if "large" in active.blip.rpartition("/")[2].replace("capfilt_large", "") else BASE
        text = {**BASE, "encoder_hidden_size": tower["hidden_size"], "vocab_size": VOCABULARY}
        config = BlipConfig(vision_config={**tower, "image_size": SIDE, "patch_size": 16}, text_config=text)
        retriever, side = BlipForImageTextRetrieval(config).eval(), SIDE
        decoder = BlipTextLMHeadModel(config.text_config).eval()
    backbone, classifier = (_vit(source) for source in (active.backbone, active.classifier.backbone))
    return Models(backbone, classifier, retriever, decoder, side)


def _vit(source: str) -> vit.Backbone | None:
    if is_checkpoint_file(source):
        return vit.load(source) if Path(source).is_file() else None
    name = split_revision(source)[0]
    vit.pretrained_config(name)  # raises for what timm does not know
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # no ViT: it has no such option
        return None
    return vit.Backbone(network) if isinstance(network, VisionTransformer | Eva) else None
