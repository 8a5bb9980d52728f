"""What is kept under `data/`, in bytes, from the shapes of what is kept."""

from dataclasses import dataclass

from stages.params.experiment import Experiment
from stages.params.model_source import is_checkpoint_file
from stages.plan.placeholder_models import Models
from stages.plan.sizes import Images

HALF = 2  # bytes of a half float


@dataclass(frozen=True)
class Stored:
    """One output, and how its size comes about."""

    path: str
    size: int
    how: str


def stored_by(experiment: Experiment, images: Images, pets: Images, models: Models) -> list[Stored]:
    """The outputs that grow with images and models; what else there is takes megabytes."""
    found, views, crop = [], experiment.segmentation.views, experiment.active.view.crop
    if models.backbone:
        vit = models.backbone
        cells, dim = vit.grid(crop, crop), vit.dim
        rows, columns = vit.grid(*images.sides)
        count = images.train * views
        found += [
            Stored(
                "data/features/segmentation/train",
                count * cells[0] * cells[1] * dim * HALF,
                f"{count} views x {cells[0]}x{cells[1]} tokens x {dim} half floats",
            ),
            Stored(
                "data/features/segmentation/val",
                images.val * rows * columns * dim * HALF,
                f"{images.val} images x about {rows}x{columns} tokens x {dim} half floats",
            ),
        ]
    if images.captions:
        tokens, dim = models.blip_tokens, models.blip.config.vision_config.hidden_size
        vectors = images.train * experiment.retrieval.views + images.val + images.captions
        found += [
            Stored(
                "data/features/captioning/val",
                images.val * tokens * dim * HALF,
                f"{images.val} images x {tokens} tokens x {dim} half floats",
            ),
            Stored("data/features/retrieval", vectors * dim * HALF, f"{vectors} vectors of {dim} half floats"),
        ]
        blip = sum(one.numel() for part in (models.blip, models.decoder) for one in part.parameters()) * 4
        if is_checkpoint_file(experiment.active.blip):
            found.append(Stored("data/downloads/converted", blip, "BLIP in the layout that is loaded"))
    settings, weights = len(experiment.classification.settings), models.classifier_bytes
    if pets.train and weights:
        how = f"{settings} settings x 2 x {weights / 1e6:.0f} MB: at the last epoch, and at the best"
        found.append(Stored("data/models/classification", 2 * settings * weights, how))
    return found
