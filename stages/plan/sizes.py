"""How many images there are, and how large: of the manifest where there is one, else what params expect."""

from dataclasses import dataclass

from stages.data import manifest as manifests
from stages.data.manifest import LABELLED, MANIFEST
from stages.params.experiment import Experiment

VOC_SIDES = (375, 500)  # height and width of most of VOC's images, in pixels
CAPTIONS = 1  # an image's, in the protocol


@dataclass(frozen=True)
class Images:
    """Of one data set: numbers by split, sides of a usual validation image, captions in all."""

    train: int
    val: int
    sides: tuple[int, int]
    captions: int


def images_of(experiment: Experiment) -> tuple[Images, Images, bool]:
    """All tasks' images and classification's, and whether they were counted (else they are what params expect)."""
    if MANIFEST.is_file() and LABELLED.is_file():
        found = [manifests.read(path) for path in (MANIFEST, LABELLED)]
        if _is_of(experiment, found[0].source):
            return *(_counted(one) for one in found), True
    if experiment.profile == "paper":
        paper = experiment.paper
        captions = (paper.voc_images.train + paper.voc_images.val) * CAPTIONS if paper.captions else 0
        pets = Images(paper.pets_images.train, paper.pets_images.val, VOC_SIDES, 0)
        return Images(paper.voc_images.train, paper.voc_images.val, VOC_SIDES, captions), pets, False
    own, side = experiment.embedded, experiment.embedded.view.crop
    scenes = Images(own.train, own.val, (side, side), 5 * (own.train + own.val))
    return scenes, Images(own.pets_train, own.pets_val, (side, side), 0), False


def _is_of(experiment: Experiment, source: str) -> bool:
    if experiment.profile == "embedded":
        return source == "data/scenes"
    if experiment.profile == "folder":
        return source == str(experiment.folder.path)
    paper = experiment.paper
    return source.startswith(str(paper.voc_root or paper.downloads))


def _counted(manifest: manifests.Manifest) -> Images:
    val = sorted(manifest.split("val"), key=lambda row: row.height * row.width)
    usual = val[len(val) // 2]
    captions = sum(len(row.captions) for row in manifest.rows)
    return Images(len(manifest.split("train")), len(val), (usual.height, usual.width), captions)
