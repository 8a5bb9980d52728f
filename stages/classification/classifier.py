"""A ViT with a new classification layer, and its weights file."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.core.weights_file import save_weights
from stages.models import vit
from stages.models.weights import check_weights, parse_metadata, read_metadata, read_weights
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.backbone.vit.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, labels)` of `(B, 3, H, W)` uint8 images."""
        pixels = vit.normalize(images, self.backbone.mean, self.backbone.std)
        return self.backbone.vit(pixels.to(self.dtype))


def build(pretrained: vit.Backbone, source: str, labels: tuple[str, ...], size: int) -> Classifier:
    """Put a new classification layer on a pretrained ViT, which is no longer frozen after that."""
    network = pretrained.vit
    network.reset_classifier(len(labels))
    # Drawn in double precision and rounded: float32 draws differ between CPUs in their last bit.
    layer = network.get_classifier().double()
    layer.reset_parameters()
    layer.float()
    return Classifier(network, source, labels, size, pretrained.architecture)


@dataclass(frozen=True)
class _Config:
    """The metadata of a classifier's file: what `load` needs to build the network."""

    source: str
    labels: tuple[str, ...]
    size: vit.Size
    architecture: vit.Architecture | None


def save(path: Path, classifier: Classifier) -> None:
    """Write the weights in float32, with the metadata that `load` needs."""
    config = _Config(classifier.source, classifier.labels, classifier.size, classifier.backbone.architecture)
    weights = {name: weight.float() for name, weight in classifier.backbone.vit.state_dict().items()}
    save_weights(path, weights, classifier=asdict(config))


def load(path: Path) -> Classifier:
    """Load a classifier that `save` wrote, in eval mode.

    Raises `InputError` for a file without a classifier, or whose metadata and weights do not match, and `OSError` for a
    missing file.
    """
    try:
        weights = read_weights(path)
        metadata = read_metadata(path)
        if "classifier" not in metadata:
            raise InputError(f"{path} does not contain a classifier; expected a file that `finetune` wrote")
        config = parse_metadata(_Config, metadata["classifier"])
        network = _build_network(path, config, weights)
        check_weights(weights, network.state_dict())
    except ValueError as error:
        raise InputError(f"{path}: cannot load this classifier: {error}") from error
    network.load_state_dict(weights)
    return Classifier(network, config.source, config.labels, config.size, config.architecture).eval()


def _build_network(path: Path, config: _Config, weights: dict[str, Tensor]) -> VisionTransformer | Eva:
    """The network of a file's `config`. Raises `ValueError` if it is not one that `build` was given."""
    labels = len(config.labels)
    if config.architecture:
        return vit.build(replace(config.architecture, outputs=labels))
    if is_checkpoint_file(config.source):
        return vit.build_plain_vit(weights, str(path), labels)
    name, _ = split_revision(config.source)
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"source {quote_value(config.source)} is not a model of timm")
    try:
        network = timm.create_model(name, num_classes=labels, dynamic_img_size=True)
    except TypeError:  # not a ViT, so no `dynamic_img_size`
        network = None
    if not isinstance(network, VisionTransformer | Eva):
        raise ValueError(f"source {quote_value(config.source)} is not a ViT of timm")
    return network
