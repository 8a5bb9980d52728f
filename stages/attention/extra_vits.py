"""ViTs that are looked into beside the profile's."""

from stages.models import vit
from stages.models.checkpoints.record import loading_errors
from stages.models.vit import Backbone


def load_other(source: str, key: str) -> Backbone:
    """A pretrained ViT, which the hub's own cache keeps if it has to be downloaded.

    Raises `InputError` naming the param `key` where there is none.
    """
    with loading_errors(key, source):
        return vit.load(source)
