"""A ViT with a classification layer of our own, and the file it is kept in."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stages.core.atomic import atomic_write
from stages.core.stage import InputError
from stages.models import vit
from stages.params.model_source import is_checkpoint_file, split_revision


class Classifier(nn.Module):
    """Logits of uint8 images, which it normalizes itself.

    Batch norm, which a stem may have, keeps its pretrained statistics: those of small batches would be worse, and
    the accumulated gradients of several batches are then those of one large one.
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
        network.requires_grad_(True).to(memory_format=torch.channels_last)  # a tenth faster on a CPU
        self.source, self.labels, self.size = source, labels, size

    def train(self, mode: bool = True) -> "Classifier":
        """Dropout and the like as `mode` says; batch norm stays as it is."""
        self.training = mode
        for module in self.backbone.vit.modules():
            module.training = mode and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """`(B, labels)` of `(B, 3, H, W)` uint8."""
        return self.backbone.vit(vit.normalize(images, self.backbone.mean, self.backbone.std))


def start(pretrained: vit.Backbone, source: str, labels: tuple[str, ...], size: int) -> Classifier:
    """The ViT of `pretrained`, which is no longer frozen, with a new classification layer."""
    pretrained.vit.reset_classifier(len(labels))
    return Classifier(pretrained.vit, source, labels, size, pretrained.architecture)


def save(path: Path, classifier: Classifier) -> None:
    """Write the weights with all that `load` needs, under one key: safetensors shuffles several from run to run."""
    architecture = classifier.backbone.architecture
    ours = asdict(architecture) if architecture else None
    facts = {"source": classifier.source, "labels": classifier.labels, "size": classifier.size, "architecture": ours}
    state = classifier.backbone.vit.state_dict()
    weights = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
    with atomic_write(path) as beside:
        save_file(weights, beside, metadata={"classifier": json.dumps(facts)})


def load(path: Path) -> Classifier:
    """The classifier in a file of `save`, in eval mode. Raises `InputError` for another file, `OSError` for none."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "classifier" not in metadata:
        raise InputError(f"{path} holds no classifier; expected a file that `finetune` wrote")
    facts = json.loads(metadata["classifier"])
    source, labels, weights = facts["source"], tuple(facts["labels"]), load_file(path)
    architecture = vit.Architecture.from_dict(facts["architecture"]) if facts["architecture"] else None
    if architecture:
        network = vit.build(replace(architecture, outputs=len(labels)))
    elif is_checkpoint_file(source):
        network = vit.build_plain_vit(weights, str(path), len(labels))
    else:
        network = timm.create_model(split_revision(source)[0], num_classes=len(labels), dynamic_img_size=True)
    network.load_state_dict(weights)
    return Classifier(network, source, labels, facts["size"], architecture).eval()
