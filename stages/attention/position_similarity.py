"""Stage `position_similarity`: how alike the position embeddings of ViTs are, as pictures and in numbers."""

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from stages import tracking
from stages.attention import PICTURES, short_name
from stages.attention.pictures import draw_positions
from stages.attention.positions import position_grid, similarity, structure
from stages.attention.vits import load_vit
from stages.backbones import vit
from stages.backbones.vit import Backbone
from stages.params.experiment import load_experiment
from stages.runs import FOLDER, Run, package_versions, write_run
from stages.stage import InputError, stage

TASK = "position_similarity"


def draw_source(source: str, backbone: Backbone, grids: list[tuple[int, int] | None], folder: Path) -> dict[str, Path]:
    """A picture for every grid, None for the ViT's own; returns them by the grid's name."""
    made = {}
    for grid in grids:
        positions = position_grid(backbone.vit, grid)
        size = "x".join(str(side) for side in positions.shape[:2])
        resampled = f", resampled to {size}" if grid else f" ({size} patches)"
        made[size] = folder / f"{short_name(source)}_{size}.png"
        draw_positions(made[size], similarity(positions), f"Position embeddings of {source}{resampled}")
    return made


def main() -> None:
    start, experiment = time.perf_counter(), load_experiment()
    asked, folder = experiment.attention.positions, PICTURES / TASK
    for output in (folder, FOLDER / TASK):
        shutil.rmtree(output, ignore_errors=True)
    keys = {experiment.active.classifier.backbone: f"{experiment.profile}.classifier.backbone"}
    runs = []
    for source in dict.fromkeys((*keys, *asked.others)):
        backbone = load_vit(source, keys.get(source, "attention.positions.others"))
        grids = [None, *(tuple(grid) for grid in asked.grids)]
        try:
            made = draw_source(source, backbone, grids, folder)
        except ValueError as fault:
            raise InputError(f"attention.positions: '{source}' {fault}") from fault
        found = structure(similarity(position_grid(backbone.vit)))
        run = Run(
            task=TASK,
            name=short_name(source),
            stage=TASK,
            params={"profile": experiment.profile, "backbone": source, "grids": asked.grids},
            metrics=asdict(found),
            inputs={"backbone": source, "weights": vit.weights_hash(backbone)},
            artefacts={grid: str(path) for grid, path in made.items()},
            versions=package_versions("torch", "timm", "scipy"),
        )
        write_run(run)
        runs.append(run)
    tracking.register(runs, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with stage(TASK):
        main()
