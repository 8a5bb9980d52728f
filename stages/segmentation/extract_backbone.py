"""Stage `extract_backbone@NAME`: the patch tokens of a compared backbone, as `extract_segmentation` computes them."""

import argparse

import torch

from stages.core.skipped import mark_skipped
from stages.core.stage import InputError, stage
from stages.data import manifest as manifests
from stages.data.manifest import Manifest
from stages.models import vit
from stages.models.checkpoints.record import loading_errors, read_checkpoint
from stages.models.checkpoints.resolver import resolve_model
from stages.params.backbones import ComparedBackbone
from stages.params.experiment import Experiment, load_experiment
from stages.segmentation import BACKBONE_FEATURES
from stages.segmentation.extract import extract


def load_backbone(experiment: Experiment, name: str) -> tuple[vit.Backbone, str]:
    """The backbone `backbones.NAME` of the params and its source, resolved; downloads its weights if necessary.

    Raises `InputError`, naming the param, if it cannot be loaded or lacks a block.
    """
    params = experiment.backbones[name]
    key = f"backbones.{name}"
    torch.manual_seed(experiment.seed_for(f"backbones/{name}"))  # of random weights
    source = params.source
    if source == "blip":
        from stages.models.blip_tower import load_tower  # transformers takes seconds to import

        source = experiment.active.blip
        folder = read_checkpoint("blip", source).path
        with loading_errors(f"{experiment.profile}.blip", source):
            backbone = load_tower(folder, params.random)
    else:
        path = None
        if source == "backbone":
            source = experiment.active.backbone
            path = read_checkpoint("backbone", source).file
        elif not params.random:
            path = resolve_model("backbone", f"{key}.source", source, experiment.paper).file
        with loading_errors(f"{key}.source", source):
            backbone = vit.load(source, path, params.random)
    use_layers(backbone, params, name)
    return backbone, source


def use_layers(backbone: vit.Backbone, params: ComparedBackbone, name: str) -> None:
    """Let a backbone return the outputs of the layers of `backbones.NAME`; raise `InputError` if it lacks one."""
    try:
        blocks = params.block_indices(len(backbone.blocks))
    except ValueError as error:
        raise InputError(f"backbones.{name}.{error}") from error
    if blocks is not None:
        backbone.use_blocks(blocks)


def cause_to_skip(experiment: Experiment, name: str, manifest: Manifest) -> str | None:
    """Why the backbone has nothing to extract, or is not on this machine; None if it can be used."""
    if not manifest.has_masks:
        return f"{manifest.source} has no masks: no segmentation"
    if experiment.backbones[name].source == "blip" and not experiment.active.has_captions:
        return f"{experiment.profile} has no captions: its BLIP is not downloaded"
    return None


def main(name: str) -> None:
    experiment = load_experiment()
    if name not in experiment.backbones:
        raise InputError(f"unknown backbone '{name}'; backbones has: {', '.join(experiment.backbones)}")
    manifest = manifests.read_manifest()
    folder = BACKBONE_FEATURES / name
    reason = cause_to_skip(experiment, name, manifest)
    if reason:
        mark_skipped(reason, folder)
        return
    backbone, source = load_backbone(experiment, name)
    extract(experiment, manifest, backbone, folder, source, experiment.backbones[name].describe_layers())


def stage_name(name: str) -> str:
    """The name of the stage in `dvc.yaml`."""
    return f"extract_backbone@{name}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True, help="a key of backbones in params.yaml")
    arguments = parser.parse_args()
    with stage(stage_name(arguments.backbone)):
        main(arguments.backbone)
