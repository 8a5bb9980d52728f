"""Search the validation images by a sentence, or the captions by an image.

    python -m stages.retrieval.search "a red circle above a blue seven"
    python -m stages.retrieval.search picture.jpg

Lists the ten best and draws them into a picture. Projections are those of the finetuned run; `--run` names others, such
as `provided` or `retrieval_grid/NAME`.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch

from stages.core.figures import figure
from stages.core.skipped import skip_reason
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.images import IMAGE_SUFFIXES, read_image
from stages.data.manifest import IMAGE_ERRORS
from stages.image_text.pixels import val_view
from stages.image_text.towers import Towers, load_towers
from stages.image_text.vocabulary import unknown_words
from stages.models.checkpoints.record import read_checkpoint
from stages.params.experiment import load_experiment
from stages.retrieval import WEIGHTS
from stages.retrieval.dataset import RetrievalData
from stages.retrieval.projections import Projections, load_projections
from stages.retrieval.recall import nearest_neighbors

COUNT = 10
COLUMNS = 5


def run_weights(run: str) -> Path:
    """Where a run's projections lie; raises `InputError` listing the runs there are."""
    reason = skip_reason(WEIGHTS / "retrieval")
    if reason:
        raise InputError(f"nothing to search: {reason}")
    path = WEIGHTS / (run if "/" in run else f"retrieval/{run}")
    path = path.with_name(f"{path.name}.safetensors")
    if not path.is_file():
        found = sorted(one.relative_to(WEIGHTS) for one in WEIGHTS.glob("retrieval*/*.safetensors"))
        names = ", ".join(str(one.with_suffix("")).removeprefix("retrieval/") for one in found)
        raise InputError(f"no run '{run}'; {f'there are: {names}' if names else 'run `dvc repro` first'}")
    return path


@torch.inference_mode()
def images_for(text: str, towers: Towers, projections: Projections, cached: RetrievalData) -> list[tuple[float, str]]:
    """Similarity and id of the best validation images, the best first."""
    asked = projections.texts(towers.text_states([text]))
    held = projections.images(cached.val.images)
    places = nearest_neighbors(asked, held, COUNT)[0]
    return [(float(asked[0] @ held[place]), cached.val.image_ids[place]) for place in places.tolist()]


@torch.inference_mode()
def captions_for(
    path: Path, towers: Towers, projections: Projections, cached: RetrievalData
) -> list[tuple[float, str]]:
    """Similarity and text of the best validation captions, the best first."""
    pixels = val_view(read_image(path), towers.pixels.side)[None]
    asked = projections.images(towers.image_states(pixels)[:, 0])
    held = projections.texts(cached.val.texts)
    places = nearest_neighbors(asked, held, COUNT)[0]
    return [(float(asked[0] @ held[place]), cached.val.captions[place]) for place in places.tolist()]


def draw_images(path: Path, text: str, found: list[tuple[float, Path]]) -> None:
    """The images found, with their similarities, under the sentence."""
    rows = -(-len(found) // COLUMNS)
    size = (1.7 * COLUMNS, 1.85 * rows + 0.4)
    with figure(path, rows, COLUMNS, figsize=size, squeeze=False) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        for place, (axis, (similar, file)) in enumerate(zip(axes.flat, found, strict=False), 1):
            axis.imshow(np.asarray(read_image(file)), interpolation="nearest")
            axis.set_title(f"{place}. {similar:.2f}", fontsize=9)
        drawn.suptitle("\n".join(textwrap.wrap(text, 80)), fontsize=11, parse_math=False)


def draw_captions(path: Path, file: Path, found: list[tuple[float, str]]) -> None:
    """The image, and beside it the captions found, with their similarities."""
    lines = "\n".join(f"{similar:.2f}  {textwrap.shorten(text, 58)}" for similar, text in found)
    words = {"fontsize": 9, "va": "center", "family": "monospace", "parse_math": False}
    with figure(path, 1, 2, figsize=(8.5, 3.4), width_ratios=[1, 1.7]) as (_, (left, right)):
        left.imshow(np.asarray(read_image(file)), interpolation="nearest")
        right.text(0, 0.5, lines, transform=right.transAxes, **words)
        for axis in (left, right):
            axis.axis("off")


def main(query: str, run: str, out: Path) -> None:
    """Answer one query."""
    if not query.strip():
        raise InputError('nothing to search for; ask for a sentence or an image file, such as "a red circle"')
    experiment, manifest = load_experiment(), manifests.read_manifest()
    projections = load_projections(run_weights(run))
    cached, towers = (
        RetrievalData(experiment, manifest),
        load_towers(read_checkpoint("blip", experiment.active.blip), experiment.compute),
    )
    projections.to(cached.device)
    if Path(query).suffix.lower() in IMAGE_SUFFIXES:
        try:
            found = captions_for(Path(query), towers, projections, cached)
        except IMAGE_ERRORS as fault:
            raise InputError(f"{query}: {'missing' if isinstance(fault, FileNotFoundError) else fault}") from fault
        draw_captions(out, Path(query), found)
    else:
        unknown = unknown_words(towers.tokenizer, [query])[1]
        if unknown:
            print(f"unknown to {experiment.active.blip}: {', '.join(unknown)}")
        found = images_for(query, towers, projections, cached)
        files = {row.image_id: Path(row.image) for row in manifest.rows}
        draw_images(out, query, [(similar, files[image_id]) for similar, image_id in found])
    for place, (similar, what) in enumerate(found, 1):
        print(f"{place:2d}  {similar:.3f}  {what}")
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", help="a sentence, or an image file")
    parser.add_argument("--run", default="finetuned", help="a run of Table 4, or retrieval_grid/NAME")
    parser.add_argument("--out", type=Path, default=Path("reports/search.png"))
    asked = parser.parse_args()
    with stage("search"):
        main(asked.query, asked.run, asked.out)
