"""Plot the models' attention for any images, or position embeddings of any ViT.

    vitlab look class-token FILE_OR_FOLDER ...   class token attention of the profile's ViTs
    vitlab look caption FILE_OR_FOLDER ...       a caption, and cross-attention for each word
    vitlab look positions VIT ...                position embeddings of timm ViTs or of files

Pictures go to reports/look, one per image. Blocks, layers and heads are set in params.yaml, under `attention`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from stages.attention import caption_attention, class_attention, position_similarity
from stages.attention.class_token import class_token_attention, resize_to_patches
from stages.attention.examples import picture_path
from stages.attention.greedy_caption import GreedyCaptioner
from stages.attention.panels import plot_rows
from stages.attention.positions import has_positions
from stages.core.stage import InputError, stage
from stages.data.images import find_images
from stages.data.manifest import read_user_image
from stages.params.experiment import Experiment, load_experiment

FOLDER = Path("reports/look")


def read_images(paths: list[Path], kind: str) -> Iterator[tuple[str, Image.Image, Path]]:
    """Every image's name, the image, and the path of its picture."""
    for name, path in tqdm(find_images(paths).items(), kind, unit="image"):
        picture = picture_path(FOLDER, f"{name}.{kind}")
        yield name, read_user_image(path), picture


def plot_class_token(experiment: Experiment, paths: list[Path]) -> Iterator[Path]:
    """One picture per image, with one row per ViT: the pretrained one and, if it was trained, the fine-tuned one."""
    params = experiment.attention.class_token
    side = experiment.active.classifier.size.base
    models = class_attention.load_models(experiment)
    reason = class_attention.missing_class_token(experiment, models[0].backbone)
    if reason:
        raise InputError(reason)
    for name, image, picture in read_images(paths, "class_token"):
        rows = []
        for model in models:
            pixels = resize_to_patches(image, side, model.backbone.patch)
            (maps,) = class_token_attention(model.backbone, [pixels], params.block, params.rollout)
            rows.append((image, model.name, class_attention.build_panels(maps)))
        title = f"{name}: attention of the class token, {class_attention.describe_block(params)}"
        plot_rows(picture, rows, title, shared_scale=False)
        yield picture


def plot_caption(experiment: Experiment, paths: list[Path]) -> Iterator[Path]:
    """One picture per image: its greedy caption, word by word."""
    captioner = GreedyCaptioner(experiment, experiment.captioning.model)
    for name, image, picture in read_images(paths, "caption"):
        caption, words = captioner.caption(image)
        caption_attention.plot_caption(picture, image, name, caption, words, [], experiment.attention.captions)
        yield picture


def plot_positions(experiment: Experiment, paths: list[Path]) -> Iterator[Path]:
    """One picture per ViT and grid."""
    for source in map(str, paths):
        backbone = position_similarity.load_extra_vit(source, "positions")
        if not has_positions(backbone.vit):
            raise InputError(f"{source} has no learned position embeddings to plot")
        grids = experiment.attention.positions.grids
        yield from position_similarity.plot_vit(source, backbone, grids, FOLDER).values()


KINDS = {"class-token": plot_class_token, "caption": plot_caption, "positions": plot_positions}


def run_command(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command line `arguments`, by default those of this process."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="for positions: a ViT's name")
    args = parser.parse_args(arguments)
    with stage("look", record=False):
        for path in KINDS[args.kind](load_experiment(), args.paths):
            print(path)


if __name__ == "__main__":
    run_command()
