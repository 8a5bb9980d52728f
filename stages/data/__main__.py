"""Stage `data`: the images of the profile in force, as two validated manifests: all tasks' and classification's."""

import shutil
from pathlib import Path

from stages.core.stage import stage
from stages.data.manifest import LABELED, SPLITS, Manifest, write_manifest
from stages.data.paper import read_paper_pets, read_paper_voc
from stages.data.scenes.source import write_object_images, write_scenes
from stages.data.voc_folder import read_folder
from stages.params.experiment import Experiment, load_experiment

SCENES, PETS = Path("data/scenes"), Path("data/objects")


def source(experiment: Experiment) -> Manifest:
    """The manifest of the profile in force."""
    if experiment.profile == "folder":
        return read_folder(experiment.folder.path)
    if experiment.profile == "paper":
        return read_paper_voc(experiment.paper)
    write_scenes(SCENES, experiment.embedded.seed, {"train": experiment.embedded.train, "val": experiment.embedded.val})
    return read_folder(SCENES)


def labeled(experiment: Experiment, manifest: Manifest) -> Manifest:
    """The manifest that classifiers are fine-tuned on: pictures of one thing each, or a folder's own images again."""
    if experiment.profile == "paper":
        return read_paper_pets(experiment.paper, PETS / "SegmentationClass")
    if experiment.profile == "folder":
        return manifest
    counts = {"train": experiment.embedded.objects_train, "val": experiment.embedded.objects_val}
    write_object_images(PETS, experiment.embedded.seed, counts)
    return read_folder(PETS)


def main() -> None:
    experiment = load_experiment()
    for folder in (SCENES, PETS):
        shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left some of another seed's
        folder.mkdir(parents=True)  # DVC asks for the output whatever the profile
    manifest = source(experiment)
    write_manifest(manifest)
    classified = labeled(experiment, manifest)
    write_manifest(classified, LABELED)
    print(facts(manifest, f"{len(manifest.classes)} classes"))
    print(facts(classified, f"{len(classified.labels)} labels"))


def facts(manifest: Manifest, known: str) -> str:
    """A manifest in one line."""
    counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
    return f"{manifest.source}: {counts} images, {known}"


if __name__ == "__main__":
    with stage("data"):
        main()
