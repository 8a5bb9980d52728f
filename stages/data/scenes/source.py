"""The embedded source: data sets drawn by this project."""

from stages.data.manifest import OBJECTS, SCENES, Manifest
from stages.data.scenes.folders import write_object_images, write_scenes
from stages.data.voc_folder import read_folder
from stages.params.profiles import Embedded


class ScenesSource:
    """Scenes for all tasks, and images of single objects for classification."""

    def __init__(self, params: Embedded) -> None:
        self.params = params

    def read(self) -> Manifest:
        counts = {"train": self.params.train, "val": self.params.val}
        write_scenes(SCENES, self.params.seed, counts)
        return read_folder(SCENES)

    def read_labeled(self, manifest: Manifest) -> Manifest:
        counts = {"train": self.params.objects_train, "val": self.params.objects_val}
        write_object_images(OBJECTS, self.params.seed, counts)
        return read_folder(OBJECTS)
