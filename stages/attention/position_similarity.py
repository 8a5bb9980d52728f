"""Stage `position_similarity`: similarity of the position embeddings of ViTs, as pictures and in numbers."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stages.attention import PICTURES, short_name
from stages.attention.panels import plot_positions
from stages.attention.positions import cosine_similarity, grid_structure, has_positions, position_grid
from stages.core.atomic import remove_folders
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.stage import InputError, stage
from stages.models import vit
from stages.models.checkpoints.record import loading_errors
from stages.models.checkpoints.vits import load_vit
from stages.models.vit import Backbone
from stages.params.experiment import Experiment, load_experiment

TASK = "position_similarity"


def load_extra_vit(source: str, param: str) -> Backbone:
    """Load a pretrained ViT that is not the profile's; a download stays in the hub's own cache.

    Raises `InputError` naming `param` if it cannot be loaded.
    """
    with loading_errors(param, source):
        return vit.load(source)


def plot_vit(source: str, backbone: Backbone, grids: Sequence[Sequence[int]], folder: Path) -> dict[str, Path]:
    """Plot the ViT's own grid, then its embeddings resampled to `grids`; return the pictures by grid, as `RxC`."""
    pictures: dict[str, Path] = {}
    for grid in (None, *grids):
        positions = position_grid(backbone.vit, grid)
        size = "x".join(str(side) for side in positions.shape[:2])
        if size in pictures:  # one of `grids` is the ViT's own
            continue
        note = f", resampled to {size}" if pictures else f" ({size} patches)"
        pictures[size] = folder / f"{short_name(source)}_{size}.png"
        plot_positions(pictures[size], cosine_similarity(positions), f"Position embeddings of {source}{note}")
    return pictures


def analyze_vit(source: str, backbone: Backbone, experiment: Experiment) -> Run:
    """Plot a ViT's grids and write its record, which has no metrics if the ViT has no position embeddings."""
    grids = experiment.attention.positions.grids
    pictures: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    if has_positions(backbone.vit):
        pictures = plot_vit(source, backbone, grids, PICTURES / TASK)
        metrics = grid_structure(cosine_similarity(position_grid(backbone.vit)))
    run = Run(
        task=TASK,
        name=short_name(source),
        stage=TASK,
        params={"profile": experiment.profile, "backbone": source, "grids": grids},
        metrics=metrics,
        inputs={"backbone": source, "weights": vit.weights_hash(backbone)},
        artifacts={grid: str(path) for grid, path in pictures.items()},
        versions=package_versions("torch", "timm", "scipy"),
    )
    write_run(run)
    return run


def main() -> None:
    experiment = load_experiment()
    folders = (PICTURES / TASK, RUNS / TASK)
    remove_folders(*folders)
    for folder in folders:
        folder.mkdir(parents=True)  # DVC requires every output, even if there is nothing to plot
    param = "attention.positions.others"
    profile_vit = experiment.active.classifier.backbone
    extra_vits = [source for source in dict.fromkeys(experiment.attention.positions.others) if source != profile_vit]
    for name, count in Counter(map(short_name, [profile_vit, *extra_vits])).items():
        if count > 1:
            raise InputError(f"{param}: {count} ViTs would share the name '{name}'; rename a checkpoint file")
    analyze_vit(profile_vit, load_vit("classifier", experiment), experiment)
    for source in extra_vits:
        analyze_vit(source, load_extra_vit(source, param), experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
