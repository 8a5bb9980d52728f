"""Stage `data`: write the manifest of all tasks and the manifest of classification."""

from stages.core.atomic import remove_folders
from stages.core.stage import stage
from stages.data.manifest import LABELED, OBJECTS, SCENES, SPLITS, Manifest, write_manifest
from stages.data.sources import build_source
from stages.params.experiment import load_experiment


def main() -> None:
    experiment = load_experiment()
    remove_folders(SCENES, OBJECTS)
    for folder in (SCENES, OBJECTS):
        folder.mkdir(parents=True)  # outputs in dvc.yaml: they must exist for every source
    source = build_source(experiment)
    manifest = source.read()
    write_manifest(manifest)
    labeled = source.read_labeled(manifest)
    write_manifest(labeled, LABELED)
    print(f"{describe(manifest)}, {len(manifest.classes)} classes")
    print(f"{describe(labeled)}, {len(labeled.labels)} labels")


def describe(manifest: Manifest) -> str:
    """Source and number of images of a manifest."""
    counts = ", ".join(f"{len(manifest.split(split))} {split}" for split in SPLITS)
    return f"{manifest.source}: {counts} images"


if __name__ == "__main__":
    with stage("data"):
        main()
