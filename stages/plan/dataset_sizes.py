"""How many images a profile has, and how large they are."""

from dataclasses import dataclass

from stages.core.stage import InputError
from stages.data.manifest import LABELED, MANIFEST, Manifest, read_manifest
from stages.params.experiment import Experiment

NATIVE_SIZE = (375, 500)  # height and width of most of VOC's images, in pixels
SCENE_CAPTIONS = 5  # per generated scene


@dataclass(frozen=True)
class DatasetSize:
    """Images per split, height and width of a typical validation image in pixels, and captions of all images."""

    train: int
    val: int
    image_size: tuple[int, int]
    captions: int = 0


def generated_scenes(experiment: Experiment) -> tuple[DatasetSize, DatasetSize]:
    """The scenes and objects that params.yaml asks for."""
    profile = experiment.embedded
    size = (profile.view.crop, profile.view.crop)  # training views have the images' size
    captions = SCENE_CAPTIONS * (profile.train + profile.val)
    scenes = DatasetSize(profile.train, profile.val, size, captions)
    return scenes, DatasetSize(profile.objects_train, profile.objects_val, size)


def voc_and_pets(experiment: Experiment) -> tuple[DatasetSize, DatasetSize]:
    """VOC 2012 and Oxford-IIIT Pet as params.yaml counts them, with one caption per VOC image, as in the original."""
    voc = experiment.paper.voc_images
    pets = experiment.paper.pets_images
    captions = voc.train + voc.val if experiment.paper.captions else 0
    return DatasetSize(voc.train, voc.val, NATIVE_SIZE, captions), DatasetSize(pets.train, pets.val, NATIVE_SIZE)


def images_of_manifests(experiment: Experiment) -> tuple[DatasetSize, DatasetSize]:
    """The images that the stage `data` has read. Raises `InputError` if it has not run, or has read another folder."""
    path = getattr(experiment.active, "path", None)  # of the profile `folder`
    is_read = MANIFEST.is_file() and LABELED.is_file()
    if not is_read or (path and read_manifest(MANIFEST).source != str(path)):
        raise InputError(f"{path or experiment.profile} was not read yet; run `dvc repro data`, then plan")
    return count_images(read_manifest(MANIFEST)), count_images(read_manifest(LABELED))


def count_images(manifest: Manifest) -> DatasetSize:
    """The size of a manifest's images; the typical image has the median area."""
    val = sorted(manifest.split("val"), key=lambda row: row.height * row.width)
    typical = val[len(val) // 2]
    captions = sum(len(row.captions) for row in manifest.rows)
    return DatasetSize(len(manifest.split("train")), len(val), (typical.height, typical.width), captions)


# Profiles whose params tell the numbers of images; the images of others are counted.
KNOWN_SIZES = {"embedded": generated_scenes, "paper": voc_and_pets}


def dataset_sizes(experiment: Experiment) -> tuple[DatasetSize, DatasetSize]:
    """The sizes of the images of all tasks, and of those that classification is fine-tuned on."""
    return KNOWN_SIZES.get(experiment.profile, images_of_manifests)(experiment)
