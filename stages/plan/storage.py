"""What is stored under `data/`: the outputs that grow with images and models, in bytes from their shapes."""

from dataclasses import dataclass
from pathlib import Path

from stages.models.vit import Backbone
from stages.params.experiment import Experiment
from stages.params.model_source import is_checkpoint_file
from stages.plan.dataset_sizes import DatasetSize
from stages.plan.placeholder_models import Models, weight_bytes
from stages.segmentation import BACKBONE_FEATURES, FEATURES

FLOAT16 = 2  # bytes


@dataclass(frozen=True)
class Stored:
    """One output: its path, its size in bytes, and how the size comes about."""

    path: str
    size: int
    content: str


def list_stored(experiment: Experiment, images: DatasetSize, labeled: DatasetSize, models: Models) -> list[Stored]:
    """The outputs that grow with images and models; all others together take megabytes."""
    outputs = []
    backbones = {FEATURES: models.backbone}
    backbones |= {BACKBONE_FEATURES / name: backbone for name, backbone in models.compared.items()}
    for folder, backbone in backbones.items():
        if backbone:
            outputs += list_tokens(folder, experiment, images, backbone)
    if images.captions:
        dim = models.blip_dim
        tokens = models.blip_tokens
        content = f"{images.val} images x {tokens} tokens x {dim} float16"
        outputs.append(Stored("data/features/captioning/val", images.val * tokens * dim * FLOAT16, content))
        vectors = images.train * experiment.retrieval.views + images.val + images.captions
        outputs.append(Stored("data/features/retrieval", vectors * dim * FLOAT16, f"{vectors} vectors x {dim} float16"))
        if is_checkpoint_file(experiment.active.blip):
            # Retrieval has a text encoder of its own, about as large as the decoder.
            size = weight_bytes(models.blip) + weight_bytes(models.blip.text_decoder)
            outputs.append(Stored("data/downloads/converted", size, "BLIP in the layout of transformers"))
    if labeled.train and models.classifier:
        size = weight_bytes(models.classifier)
        settings = len(experiment.classification.settings)
        content = f"{settings} settings x 2 x {size / 1e6:.0f} MB: last and best epoch"
        outputs.append(Stored("data/models/classification", 2 * settings * size, content))
    return outputs


def list_tokens(folder: Path, experiment: Experiment, images: DatasetSize, backbone: Backbone) -> list[Stored]:
    """The two feature tables of a segmentation backbone."""
    crop = experiment.active.view.crop
    views = images.train * experiment.segmentation.views
    rows, columns = backbone.grid(crop, crop)
    tokens = f"{rows}x{columns} tokens x {backbone.dim} float16"
    train = Stored(f"{folder}/train", views * rows * columns * backbone.dim * FLOAT16, f"{views} views x {tokens}")
    rows, columns = backbone.grid(*images.image_size)
    tokens = f"{rows}x{columns} tokens x {backbone.dim} float16"
    size = images.val * rows * columns * backbone.dim * FLOAT16
    return [train, Stored(f"{folder}/val", size, f"{images.val} images x about {tokens}")]
