"""Data sources by name: the values of `profile` in `params.yaml`.

To add a source, write a class with the methods of `Source` in a file of its own, register it here, and add its profile
to `params.yaml`. The class gets the profile's section; it checks the keys of its own with `validate_params`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from stages.core.stage import InputError
from stages.data.manifest import Manifest
from stages.data.paper import PaperSource
from stages.data.scenes.source import ScenesSource
from stages.data.voc_folder import FolderSource
from stages.params.experiment import Experiment


class Source(Protocol):
    """Images with their annotations. Both methods raise `InputError` listing all problems."""

    def read(self) -> Manifest:
        """Return the validated manifest that all tasks but classification use."""

    def read_labeled(self, manifest: Manifest) -> Manifest:
        """Return the validated manifest that classifiers are fine-tuned on.

        `manifest` is the result of `read`: a source whose images have labels returns it unchanged.
        """


# Each source is built from its section of `params.yaml`.
SOURCES: dict[str, Callable[[Any], Source]] = {
    "embedded": ScenesSource,
    "folder": FolderSource,
    "paper": PaperSource,
}


def build_source(experiment: Experiment) -> Source:
    """Return the source of the active profile."""
    if experiment.profile not in SOURCES:
        raise InputError(f"profile = '{experiment.profile}': no such data source; available: {', '.join(SOURCES)}")
    return SOURCES[experiment.profile](experiment.active)
