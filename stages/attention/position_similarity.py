"""Stage `position_similarity`: how alike the position embeddings of ViTs are, as pictures and in numbers."""

import argparse
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from stages.attention import PICTURES, short_name
from stages.attention.extra_vits import load_other
from stages.attention.panels import draw_positions
from stages.attention.positions import has_positions, position_grid, similarity, structure
from stages.core.runs import RUNS, Run, package_versions, write_run
from stages.core.stage import InputError, stage
from stages.models import vit
from stages.models.checkpoints.vits import load_vit
from stages.models.vit import Backbone
from stages.params.experiment import Experiment, load_experiment

TASK = "position_similarity"


def draw_source(source: str, backbone: Backbone, grids: list[tuple[int, int] | None], folder: Path) -> dict[str, Path]:
    """A picture for every grid, the first of them None for the ViT's own; returns them by the grid's name."""
    made: dict[str, Path] = {}
    for grid in grids:
        positions = position_grid(backbone.vit, grid)
        size = "x".join(str(side) for side in positions.shape[:2])
        if size in made:  # a ViT's own grid, asked for again
            continue
        resampled = f", resampled to {size}" if made else f" ({size} patches)"
        made[size] = folder / f"{short_name(source)}_{size}.png"
        draw_positions(made[size], similarity(positions), f"Position embeddings of {source}{resampled}")
    return made


def run_source(source: str, backbone: Backbone, experiment: Experiment) -> Run:
    """Draw one ViT's grids and write its record, which holds nothing for a ViT without position embeddings."""
    asked = experiment.attention.positions
    made, found = {}, {}
    if has_positions(backbone.vit):
        made = draw_source(source, backbone, [None, *(tuple(grid) for grid in asked.grids)], PICTURES / TASK)
        found = asdict(structure(similarity(position_grid(backbone.vit))))
    run = Run(
        task=TASK,
        name=short_name(source),
        stage=TASK,
        params={"profile": experiment.profile, "backbone": source, "grids": asked.grids},
        metrics=found,
        inputs={"backbone": source, "weights": vit.weights_hash(backbone)},
        artifacts={grid: str(path) for grid, path in made.items()},
        versions=package_versions("torch", "timm", "scipy"),
    )
    write_run(run)
    return run


def main() -> None:
    experiment = load_experiment()
    for folder in (PICTURES / TASK, RUNS / TASK):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)  # DVC asks for it, whatever there is to show
    own, others = experiment.active.classifier.backbone, experiment.attention.positions.others
    for name, count in Counter(map(short_name, dict.fromkeys([own, *others]))).items():
        if count > 1:
            raise InputError(f"attention.positions.others: {count} ViTs would be called '{name}'; rename one's file")
    run_source(own, load_vit("classifier", experiment), experiment)
    for source in dict.fromkeys(others):
        if source != own:
            run_source(source, load_other(source, "attention.positions.others"), experiment)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
