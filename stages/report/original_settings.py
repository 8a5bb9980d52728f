"""The settings behind the original's numbers.

A row of a table has settings of its own, such as a learning rate: only a row with the original's is compared with the
original's number. The whole task has a protocol, models and data: only where these are the original's, too, does the
difference of two numbers mean anything.
"""

from typing import Any

from stages.core.runs import Run
from stages.params.experiment import Experiment
from stages.report.original import load_original
from stages.report.results import Result

TABLES = {  # tables of the original, by task; the task's rows may be in either of two
    "segmentation": ("table1_segmentation",),
    "captioning": ("table2_captioning", "table3_captioning_grid"),
    "retrieval": ("table4_retrieval",),
    "retrieval_grid": ("table5_retrieval_grid",),
    "classification": ("classification",),
}

HEAD_TRAINING = {"epochs": 15, "batch_size": 8, "lr": 1e-3, "weight_decay": 1e-3}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "convolutional": {"kind": "convolutional", "kernel": 3},
    "convolutional_5x5": {"kind": "convolutional", "kernel": 5},  # in the original's text, not in its table
    "transformer": {"kind": "transformer", "shared_qk": False, "qkv_bias": False},
    "transformer_shared_qk": {"kind": "transformer", "shared_qk": True, "qkv_bias": False},
}

CAPTION_LENGTHS = {"min_length": 10, "max_length": 30}  # in tokens
DECODINGS = {"Greedy search": "greedy", "Top-K sampling": "top_k"}

INITS = {
    "Evaluating with the provided checkpoint": "provided",
    "Training from scratch": "scratch",
    "Finetuning checkpoint": "provided",
}
RETRIEVAL_BATCH_SIZE = 16

# `lr` and `size` are names here: each profile's ViT has its own values for them. The original does not tell its batch
# size.
FINE_TUNINGS: dict[str, dict[str, Any]] = {
    "base": {"lr": "base", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "high_lr": {"lr": "high", "augment": False, "size": "base", "accumulate": 1, "epochs": 5},
    "augmented": {"lr": "base", "augment": True, "size": "large", "accumulate": 1, "epochs": 5},
    "accumulated": {"lr": "base", "augment": True, "size": "large", "accumulate": 15, "epochs": 5},
}

ATTENTION: dict[str, dict[str, Any]] = {
    "position_similarity": {},
    "class_attention": {"block": -1},
    "caption_attention": {"layer": -1, "head": "mean"},
}


ORIGINAL_PROFILE = "paper"  # the original's images
# What all rows of a task share, in their records' params.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "segmentation": {"views": 15},
    "captioning": {"model": "blip", "stop": "batch"},
    "retrieval": {"views": 8, "augment_probability": 0.5},
    "retrieval_grid": {"views": 8, "augment_probability": 0.5},
    "classification": {},
}
# Parts of the names under which the original's models can be had.
BLIP = ("model_base_capfilt_large", "blip-image-captioning-base")
MODELS = {
    "segmentation": ("vit_small_patch16_224.dino", "dino_deitsmall16_pretrain"),
    "captioning": BLIP,
    "retrieval": BLIP,
    "retrieval_grid": BLIP,
    "classification": ("vit_base_patch16_224.augreg_in1k", "vit_base_patch16_224.orig_in21k_ft_in1k"),
}


def deviations(run: Run) -> list[str]:
    """What keeps a run's number from being subtracted from the original's, besides the settings of its row."""
    if run.params["profile"] != ORIGINAL_PROFILE:
        return [f"profile = {run.params['profile']}"]
    differences = list_changes(PROTOCOLS[run.task], run.params)
    backbone = run.inputs["backbone"]
    if not any(name in backbone for name in MODELS[run.task]):
        differences.append(f"model = {backbone}")
    return differences


def list_changes(expected: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """The params that differ from the expected ones, such as `epochs = 3 instead of 5`."""
    return [
        f"{key} = {params.get(key)} instead of {value}" for key, value in expected.items() if params.get(key) != value
    ]


def original_number(task: str, name: str) -> float | str | None:
    """What the original prints for a row: a number, or words such as "over 94"; None for a row that it lacks."""
    row = _original_row(task, name)
    return row[-1] if row else None


def original_settings(task: str, name: str) -> dict[str, Any] | None:
    """The params with which the original's row was made; None for a row that the original does not have."""
    row = _original_row(task, name)
    if task == "segmentation":
        return {**HEAD_TRAINING, **HEADS[name]} if name in HEADS else None
    if task == "classification":
        return FINE_TUNINGS.get(name)
    if task in ATTENTION:
        return ATTENTION[task]
    if row is None:
        return None
    if task == "captioning":
        kind, k, temperature, prompt, _ = row
        return {"type": DECODINGS[kind], "k": k, "temperature": temperature, "prompt": prompt, **CAPTION_LENGTHS}
    mode, lr, weight_decay, temperature, epochs, _ = row
    settings = {"lr": lr, "weight_decay": weight_decay, "temperature": temperature, "epochs": epochs}
    batch_size = None if lr is None else RETRIEVAL_BATCH_SIZE  # evaluating the provided projections has no batches
    return {"init": INITS[mode], **settings, "batch_size": batch_size}


def changed_settings(result: Result, experiment: Experiment) -> list[str]:
    """The settings of a row of the original that are other ones here, such as `epochs = 3 instead of 5`."""
    task = result.run.task
    expected = original_settings(task, result.name)
    if expected is None:
        return ["it is not a row of the original"]
    params = result.run.params
    if task == "classification":
        params = experiment.classification.settings[result.name].model_dump()  # with names of rates and sizes
    return list_changes(expected, params)


def _original_row(task: str, name: str) -> list | None:
    for table in TABLES.get(task, ()):
        row = load_original()[table]["rows"].get(name)
        if row:
            return row
    return None
