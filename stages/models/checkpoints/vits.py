"""The ViTs of a profile, loaded from where the stage `checkpoints` brought them."""

from stages.models import vit
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.vit import Backbone
from stages.params.experiment import Experiment

KEYS = {"backbone": "backbone", "classifier": "classifier.backbone"}


def load_vit(kind: str, experiment: Experiment) -> Backbone:
    """The profile's ViT of one of `KEYS`; raises `InputError` naming its param where it cannot be loaded."""
    active = experiment.active
    source = active.backbone if kind == "backbone" else active.classifier.backbone
    path = read_checkpoint(kind, source).file
    with loading_errors(f"{experiment.profile}.{KEYS[kind]}", source):
        return vit.load(source, path)
