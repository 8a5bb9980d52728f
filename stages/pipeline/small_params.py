"""The params of a smoke run: the whole pipeline on a few dozen images. Its numbers mean nothing."""

from collections.abc import Sequence
from typing import Any

from stages.plan.overrides import apply_overrides, set_param

# What `make quick` and the tests' pipelines change in params.yaml, by dotted key; `*` is every name.
SMALL_PARAMS: dict[str, Any] = {
    "profile": "embedded",
    "folder.path": "data/folder",  # DVC hashes it for every profile: a user's images would be copied
    # 59 images: one to learn from and one to be measured on for each of the 20 classes of objects, and 19 scenes.
    "embedded.train": 12,
    "embedded.val": 7,
    "embedded.objects_train": 20,
    "embedded.objects_val": 20,
    "embedded.examples": {"class_token": 2, "captions": 2},
    # A process for MLflow takes longer than such a training, and starting workers longer than loading the images.
    "compute.live": False,
    "compute.workers": 0,
    "compute.engine": "local",
    "compute.store": None,
    "segmentation.seeds": [1],
    "segmentation.views": 2,
    "segmentation.epochs": 2,
    "segmentation.batch_size": 4,
    "captioning.seeds": [1],
    "retrieval.seeds": [1],
    "retrieval.views": 2,
    "retrieval.epochs": 2,
    "retrieval.batch_size": 4,
    "retrieval.finetune.epochs": 1,
    "retrieval.finetune.batch_size": 4,
    "retrieval.grid.*.epochs": 2,
    "retrieval.grid.*.batch_size": 4,
    "classification.seeds": [1],
    "classification.settings.*.batch_size": 4,
    "classification.settings.*.epochs": 1,
}
# Removed by name, so that what a user adds to params.yaml is tried. Each head and each setting is a stage of its own,
# whose imports take seconds.
LEFT_OUT = (
    "segmentation.heads.convolutional",
    "segmentation.heads.convolutional_5x5",
    "segmentation.heads.transformer",
    "segmentation.heads.transformer_shared_qk",
    "backbones.last4",
    "backbones.random",
    "backbones.blip_tower",
    "captioning.cells.k50_t01",
    "captioning.cells.k30_t07",
    "captioning.cells.k10_t01",
    "captioning.cells.k5_t01",
    "captioning.cells.k5_t005",
    "captioning.cells.k1_t01",
    "classification.settings.high_lr",
    "classification.settings.augmented",
    "classification.settings.accumulated",
    "classification.settings.equal_steps",
)


def shrink(params: dict[str, Any], overrides: Sequence[str] = ()) -> None:
    """Shrink the content of `params.yaml` in place, then apply `KEY=VALUE` overrides."""
    for key, value in SMALL_PARAMS.items():
        set_param(params, key, value)
    for key in LEFT_OUT:
        *sections, name = key.split(".")
        content = params
        for section in sections:
            content = content[section]
        content.pop(name, None)
    apply_overrides(params, overrides)
