"""Time the class token's attention maps next to the plain forward pass: same ViT, same images, in turn.

    python -m benchmarks.attention                 the embedded ViT
    python -m benchmarks.attention --paper         ViT-B/16 at 224x224, random weights

The forward pass uses the fused attention kernel, which returns no weights. The maps need the weights: of one block, or
of all blocks for rollout. The stage also reads the images and their masks and measures the attention on the objects.

Prints the median seconds over the rounds as images per second, and relative to the forward pass.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch

from benchmarks.segmentation import make_scenes
from stages.attention.class_attention import compute_maps, measure_image
from stages.attention.class_token import class_token_attention, resize_to_patches
from stages.data.images import read_image
from stages.data.manifest import Row
from stages.models import vit
from stages.models.compute import get_device
from stages.params.experiment import load_experiment

ROUNDS = 5


def build_variants(backbone: vit.Backbone, rows: tuple[Row, ...], side: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each call processes all images once."""
    params = load_experiment().attention.class_token.model_copy(update={"rollout": True})
    images = [resize_to_patches(read_image(Path(row.image)), side, backbone.patch) for row in rows]
    pixels = torch.stack(images).to(get_device())

    @torch.inference_mode()
    def run_forward() -> torch.Tensor:
        return backbone(pixels).patches.cpu()

    def run_stage() -> list[dict]:
        return [measure_image(row, maps, background=0) for row, maps in compute_maps(backbone, rows, side, params)]

    return {
        "forward pass": run_forward,
        "maps of one block": lambda: class_token_attention(backbone, images, params.block, with_rollout=False),
        "maps with rollout": lambda: class_token_attention(backbone, images, params.block, with_rollout=True),
        "stage, with rollout": run_stage,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="ViT-B/16, 224x224, random weights")
    parser.add_argument("--images", type=int, default=None, help="default: 32; 4 with --paper")
    arguments = parser.parse_args()
    images = arguments.images or (4 if arguments.paper else 32)
    if arguments.paper:
        backbone = vit.Backbone(timm.create_model("vit_base_patch16_224", num_classes=0, dynamic_img_size=True))
        side = 224
    else:
        classifier = load_experiment().embedded.classifier
        backbone = vit.load(classifier.backbone)
        side = classifier.size.base
    backbone.to(get_device())
    with tempfile.TemporaryDirectory() as folder:
        rows = make_scenes(Path(folder), 0, images, side)["val"]
        variants = build_variants(backbone, rows, side)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for call in variants.values():
            call()  # warms up
        for _ in range(ROUNDS):
            for name, call in variants.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    print(f"{images} images of {side}x{side}, {torch.get_num_threads()} threads, on {get_device()}")
    forward = median(seconds["forward pass"])
    for name, durations in seconds.items():
        duration = median(durations)
        print(f"{name:<20}{images / duration:9.2f} images/s{duration / forward:7.2f} times the forward pass")


if __name__ == "__main__":
    main()
