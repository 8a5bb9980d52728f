"""Stage `data`: the images of the profile in force, as one validated manifest."""

import shutil
from pathlib import Path

from stages import voc
from stages.data.folder import read_folder
from stages.data.manifest import Manifest, write
from stages.data.scenes.source import write_scenes
from stages.params.experiment import Experiment, load_experiment
from stages.stage import InputError, stage

SCENES = Path("data/scenes")


def source(experiment: Experiment) -> Manifest:
    """The manifest of the profile in force."""
    if experiment.profile == "folder":
        return read_folder(experiment.folder.path)
    if experiment.profile == "paper":
        root = experiment.paper.voc_root
        if not root.is_dir():
            raise InputError(
                f"paper.voc_root = '{root}' is no folder; put VOC 2012 there "
                "(VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012, unpacked)"
            )
        return read_folder(root, voc.CLASSES)
    write_scenes(SCENES, experiment.embedded.seed, {"train": experiment.embedded.train, "val": experiment.embedded.val})
    return read_folder(SCENES)


def main() -> None:
    experiment = load_experiment()
    shutil.rmtree(SCENES, ignore_errors=True)  # a killed run may have left some of another seed's
    SCENES.mkdir(parents=True)  # DVC asks for the output whatever the profile
    manifest = source(experiment)
    write(manifest)
    counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in ("train", "val"))
    print(f"{manifest.source}: {counts} images, {len(manifest.classes)} classes")


if __name__ == "__main__":
    with stage("data"):
        main()
