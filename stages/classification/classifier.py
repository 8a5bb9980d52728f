"""A ViT with a new classification layer, and its weights file."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.core.stage import InputError
from stages.core.weights_file import save_weights
from stages.models import vit
from stages.params.model_source import is_checkpoint_file, split_revision


class Classifier(nn.Module):
    """Logits of uint8 images, which the module normalizes itself.

    Batch norm, which some stems have, keeps its pretrained statistics. Those of small batches would be worse. Frozen
    statistics also make the accumulated gradients of several batches equal those of one large batch.
    """

    def __init__(
        self,
        network: VisionTransformer | Eva,
        source: str,
        labels: tuple[str, ...],
        size: int,
        architecture: vit.Architecture | None = None,
    ):
        super().__init__()
        self.backbone = vit.Backbone(network, architecture)
        # `Backbone` freezes its network, so unfreeze it here. Channels last is 10 % faster on a CPU.
        network.requires_grad_(True).to(memory_format=torch.channels_last)
        self.source = source
        self.labels = labels
        self.size = size

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode for dropout and the like; batch norm always stays in eval mode."""
        self.training = mode
        # Set per module: `Backbone.train` would keep the whole network in eval mode.
        for module in self.backbone.vit.modules():
            module.training = mode and not isinstance(module, _BatchNorm)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, labels)` of `(B, 3, H, W)` uint8 images."""
        return self.backbone.vit(vit.normalize(images, self.backbone.mean, self.backbone.std))


def build(pretrained: vit.Backbone, source: str, labels: tuple[str, ...], size: int) -> Classifier:
    """Put a new classification layer on a pretrained ViT, which is no longer frozen after that."""
    pretrained.vit.reset_classifier(len(labels))
    return Classifier(pretrained.vit, source, labels, size, pretrained.architecture)


def save(path: Path, classifier: Classifier) -> None:
    """Write the weights, with the metadata that `load` needs to build the network."""
    architecture = classifier.backbone.architecture
    metadata = {
        "source": classifier.source,
        "labels": classifier.labels,
        "size": classifier.size,
        "architecture": asdict(architecture) if architecture else None,
    }
    save_weights(path, classifier.backbone.vit.state_dict(), classifier=metadata)


def load(path: Path) -> Classifier:
    """Load a classifier that `save` wrote, in eval mode.

    Raises `InputError` for a file without a classifier and `OSError` for a missing file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "classifier" not in metadata:
        raise InputError(f"{path} does not contain a classifier; expected a file that `finetune` wrote")
    config = json.loads(metadata["classifier"])
    source = config["source"]
    labels = tuple(config["labels"])
    architecture = vit.Architecture.from_dict(config["architecture"]) if config["architecture"] else None
    weights = load_file(path)
    network: nn.Module
    if architecture:
        network = vit.build(replace(architecture, outputs=len(labels)))
    elif is_checkpoint_file(source):
        network = vit.build_plain_vit(weights, str(path), len(labels))
    else:
        network = timm.create_model(split_revision(source)[0], num_classes=len(labels), dynamic_img_size=True)
    assert isinstance(network, VisionTransformer | Eva)  # `vit.load` accepts no other architecture
    network.load_state_dict(weights)
    return Classifier(network, source, labels, config["size"], architecture).eval()
