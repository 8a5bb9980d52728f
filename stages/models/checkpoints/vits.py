"""Loads the ViTs of a profile from where the stage `checkpoints` saved them."""

from stages.models import vit
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.vit import Backbone
from stages.params.experiment import Experiment


def load_vit(kind: str, experiment: Experiment) -> Backbone:
    """Load the "backbone" or "classifier" of the profile; raise `InputError` naming its param if that fails."""
    active = experiment.active
    params = {
        "backbone": ("backbone", active.backbone),
        "classifier": ("classifier.backbone", active.classifier.backbone),
    }
    key, source = params[kind]
    path = read_checkpoint(kind, source).file
    with loading_errors(f"{experiment.profile}.{key}", source):
        return vit.load(source, path)
