"""How many images there are, and how large: of the manifest where there is one, else what params expect."""

from dataclasses import dataclass

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data.manifest import LABELED, MANIFEST
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
    found = [_counted(manifests.read_manifest(path)) for path in (MANIFEST, LABELED) if path.is_file()]
    if experiment.profile == "folder":
        if len(found) < 2 or manifests.read_manifest().source != str(experiment.folder.path):
            raise InputError(f"{experiment.folder.path} is not read yet; run `dvc repro data`, then plan")
        return *found, True
    expected = _expected(experiment)
    if len(found) == 2 and all(_agree(*pair) for pair in zip(found, expected, strict=True)):
        return *found, True
    return *expected, False


def _expected(experiment: Experiment) -> tuple[Images, Images]:
    if experiment.profile == "paper":
        paper = experiment.paper
        captions = (paper.voc_images.train + paper.voc_images.val) * CAPTIONS if paper.captions else 0
        pets = Images(paper.pets_images.train, paper.pets_images.val, VOC_SIDES, 0)
        return Images(paper.voc_images.train, paper.voc_images.val, VOC_SIDES, captions), pets
    own, side = experiment.embedded, experiment.embedded.view.crop
    scenes = Images(own.train, own.val, (side, side), 5 * (own.train + own.val))
    return scenes, Images(own.objects_train, own.objects_val, (side, side), 0)


def _agree(found: Images, expected: Images) -> bool:
    """Whether a manifest is of what params ask for, as far as numbers tell."""
    same = (found.train, found.val) == (expected.train, expected.val)
    return same and bool(found.captions) == bool(expected.captions)


def _counted(manifest: manifests.Manifest) -> Images:
    val = sorted(manifest.split("val"), key=lambda row: row.height * row.width)
    usual = val[len(val) // 2]
    captions = sum(len(row.captions) for row in manifest.rows)
    return Images(len(manifest.split("train")), len(val), (usual.height, usual.width), captions)
