"""Search the validation images by a sentence, or the validation captions by an image.

    vitlab search "a red circle above a blue seven"
    vitlab search picture.jpg

Prints the ten best results and draws them into a figure. Uses the projections of the finetuned run, or of another one
given by `--run`, such as `provided` or `retrieval_grid/NAME`. Of the runs of a name, it takes that of the first of
`retrieval.seeds`; `finetuned-seed3` is another one.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.core.figures import figure, label_text, wrap_text
from stages.core.runs import run_key
from stages.core.skipped import skip_reason
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.images import is_image, read_image
from stages.data.manifest import IMAGE_ERRORS, image_problem
from stages.image_text.towers import Towers, load_blip
from stages.image_text.vocabulary import unknown_words
from stages.params.experiment import load_experiment
from stages.retrieval import WEIGHTS
from stages.retrieval.dataset import RetrievalData
from stages.retrieval.projections import Projections, load_projections
from stages.retrieval.recall import nearest_neighbors

COUNT = 10
COLUMNS = 5

Results = list[tuple[float, str]]  # similarity and image ID or caption, best first


def find_weights(run: str, seeds: Sequence[int]) -> Path:
    """The path of a run's projections. Of a name without a seed, it is the run with the first of `seeds`.

    Raises `InputError` with the names of existing runs.
    """
    reason = skip_reason(WEIGHTS / "retrieval")
    if reason:
        raise InputError(f"nothing to search: {reason}")
    paths = {}
    for path in sorted(WEIGHTS.glob("retrieval*/*.safetensors")):
        paths[str(path.relative_to(WEIGHTS).with_suffix("")).removeprefix("retrieval/")] = path
    name = run.removeprefix("retrieval/")
    for key in (name, run_key(name, seeds[0])):
        if key in paths:
            return paths[key]
    names = dict.fromkeys(re.sub(r"-seed\d+$", "", key) for key in paths)
    advice = f"choose from {', '.join(names)}" if names else "run `dvc repro` first"
    raise InputError(f"no run '{run}'; {advice}")


@torch.inference_mode()
def search_images(
    sentence: str, towers: Towers, projections: Projections, states: Tensor, names: Sequence[str], count: int = COUNT
) -> Results:
    """The `count` images most similar to a sentence, from their names and class-token states `(N, dim)`."""
    embedding = projections.texts(towers.text_states([sentence]))
    return nearest(embedding, projections.images(states), names, count)


def nearest(query: Tensor, gallery: Tensor, names: Sequence[str], count: int = COUNT) -> Results:
    """The `count` entries of `gallery` `(N, dim)` most similar to `query` `(1, dim)`."""
    indices = nearest_neighbors(query, gallery, count)[0].tolist()
    return [(float(query[0] @ gallery[index]), names[index]) for index in indices]


def draw_images(path: Path, text: str, results: Results, image_paths: dict[str, Path]) -> None:
    """Draw the images found for a sentence, with their similarities."""
    rows = -(-len(results) // COLUMNS)  # rounded up
    size = (1.7 * COLUMNS, 1.85 * rows + 0.4)
    with figure(path, rows, COLUMNS, figsize=size, squeeze=False) as (canvas, axes):
        for axis in axes.flat:
            axis.axis("off")
        for number, (axis, (similarity, image_id)) in enumerate(zip(axes.flat, results, strict=False), 1):
            axis.imshow(np.asarray(read_image(image_paths[image_id])), interpolation="nearest")
            axis.set_title(f"{number}. {similarity:.2f}", fontsize=9)
        canvas.suptitle(wrap_text(text, 80, lines=3), fontsize=11)


def draw_captions(path: Path, image: Image.Image, results: Results) -> None:
    """Draw an image and the captions found for it, with their similarities."""
    lines = "\n".join(f"{similarity:.2f}  {label_text(caption, 58)}" for similarity, caption in results)
    style = {"fontsize": 9, "va": "center", "family": "monospace"}
    with figure(path, 1, 2, figsize=(8.5, 3.4), width_ratios=[1, 1.7]) as (_, (left, right)):
        left.imshow(np.asarray(image), interpolation="nearest")
        right.text(0, 0.5, lines, transform=right.transAxes, **style)
        for axis in (left, right):
            axis.axis("off")


@torch.inference_mode()
def main(query: str, run: str, figure_path: Path) -> None:
    """Search for one query."""
    if not query.strip():
        raise InputError('empty query; give a sentence or an image file, such as "a red circle"')
    experiment = load_experiment()
    manifest = manifests.read_manifest()
    projections = load_projections(find_weights(run, experiment.retrieval.seeds))
    data = RetrievalData(experiment, manifest)
    projections.to(data.device)
    towers = load_blip(experiment)
    if is_image(Path(query)):
        try:
            image = read_image(Path(query))
        except IMAGE_ERRORS as error:
            raise InputError(f"{query}: {image_problem(error)}") from error
        embedding = projections.images(towers.encode_images([image])[:, 0])
        results = nearest(embedding, projections.texts(data.val.texts), data.val.captions)
        draw_captions(figure_path, image, results)
    else:
        _, unknown = unknown_words(towers.tokenizer, [query])
        if unknown:
            print(f"unknown to {experiment.active.blip}: {', '.join(unknown)}")
        results = search_images(query, towers, projections, data.val.images, data.val.image_ids)
        image_paths = {row.image_id: Path(row.image) for row in manifest.rows}
        draw_images(figure_path, query, results, image_paths)
    for number, (similarity, name) in enumerate(results, 1):
        print(f"{number:2d}  {similarity:.3f}  {name}")
    print(figure_path)


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", help="a sentence, or an image file")
    parser.add_argument("--run", default="finetuned", help="a run of Table 4, or retrieval_grid/NAME")
    parser.add_argument("--out", type=Path, default=Path("reports/search.png"), help="the figure")
    args = parser.parse_args(arguments)
    with stage("search", record=False):
        main(args.query, args.run, args.out)


if __name__ == "__main__":
    run_command()
