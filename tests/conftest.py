"""A small folder in VOC's layout, and a temporary clone of the project with shrunk params."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from small_checkpoints import SMALL_CATR, untrained_catr
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessorPil

from stages.core import train_state
from stages.data.scenes import web
from stages.data.voc import COLOR_MAP
from stages.models import blip, catr, vit
from stages.pipeline.small_params import SMALL_PARAMS
from stages.pipeline.workspace import CODE, clean_environment
from stages.plan.overrides import set_param

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = (*CODE, "data/folder", "reports", "reports/runs/backbones/README.md")


LONG = (
    "test_pipeline.py",
    "test_paper_profile.py",
    "test_folder_profile.py",
)  # start first, as they take longest

# Two tests run at a time. OMP_NUM_THREADS=2 tries another order of additions.
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(THREADS))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def seeded():
    """No test depends on the random numbers that another test drew."""
    torch.manual_seed(0)


def write_mask(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette(COLOR_MAP.tobytes())
    image.save(path)


@pytest.fixture
def voc_folder(tmp_path):
    """Three images of different sizes (two train, one val); masks of classes 0 to 2 with a void line."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image_id, (height, width) in {"a": (24, 32), "b": (40, 30), "c": (33, 47)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            root / "JPEGImages" / f"{image_id}.jpg"
        )
        mask = np.zeros((height, width), np.uint8)
        mask[:10], mask[10], mask[11:15] = 1, 255, 2
        write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\n")
    return root


def assert_equal_curves(actual: list[dict], expected: list[dict]) -> None:
    """NaN, of a model whose captions tell no place, equals NaN."""
    assert [point.keys() for point in actual] == [point.keys() for point in expected]
    for point, expected_point in zip(actual, expected, strict=True):
        assert point == pytest.approx(expected_point, rel=0, abs=0, nan_ok=True)


def interrupt_at_first_save(monkeypatch, train) -> None:
    """Run `train` and interrupt it right after it has first saved its state."""
    save_state = train_state.save_state

    def save_and_interrupt(*args):
        save_state(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_state, "save_state", save_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.setattr(train_state, "save_state", save_state)


def untrained_blip(folder: Path, sharp: float = 1.0) -> None:
    """Write a small BLIP with random weights; a larger `sharp` makes its output distribution less uniform."""
    torch.manual_seed(0)
    tokenizer = blip.word_tokenizer(web.vocabulary())
    config = blip.small_config(vit.Architecture(dim=32, depth=1), len(tokenizer), layers=2, projection=16)
    captioner = blip.build(BlipForConditionalGeneration, config)
    retriever = blip.build(BlipForImageTextRetrieval, config)
    retriever.vision_model = captioner.vision_model
    with torch.no_grad():
        captioner.text_decoder.cls.predictions.decoder.weight.mul_(sharp)
    mean_std = {"image_mean": vit.MEAN, "image_std": vit.STD}
    processor = BlipImageProcessorPil(**mean_std, size={"height": 80, "width": 80})
    blip.save(folder, captioner, retriever, tokenizer, processor)


def small_catr(folder: Path) -> None:
    """Write a small CATR with random weights, of the shipped kind."""
    torch.manual_seed(0)
    tokenizer = blip.word_tokenizer(web.vocabulary())
    special_tokens = {"start": tokenizer.cls_token_id, "end": tokenizer.sep_token_id}
    config = replace(SMALL_CATR, vocabulary=len(tokenizer), positions=32, expansion=1, longer_side=64, **special_tokens)
    catr.save(folder, untrained_catr(config), tokenizer)


class Project:
    """A clone of the pipeline in its own folder."""

    def __init__(self, root: Path):
        self.root = root
        self.environment = {
            **clean_environment(),
            "OMP_NUM_THREADS": THREADS,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *command: str, **settings) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=1200, **settings
        )

    def repro(self, *options: str) -> subprocess.CompletedProcess:
        return self.run("dvc", "repro", *options)

    def start_repro(self, *targets: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["dvc", "repro", *targets],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def set(self, **values) -> None:
        """Change params: keys with `__` for dots."""
        self.set_params({key.replace("__", "."): value for key, value in values.items()})

    def set_params(self, values: dict[str, Any]) -> None:
        """Change params, by dotted key."""
        yaml = YAML()
        path = self.root / "params.yaml"
        params = yaml.load(path)
        for key, value in values.items():
            set_param(params, key, value)
        yaml.dump(params, path)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()


def clone(root: Path) -> Project:
    """A clone with two heads, few images and an untrained backbone of the shipped kind."""
    for name in PIPELINE:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "timings.json", "figures", "tables", "plots", "runs")
            shutil.copytree(source, target, ignore=ignored)
        elif source.exists():
            shutil.copy(source, target)
    project = Project(root)
    torch.manual_seed(0)
    architecture = vit.Architecture(outputs=28)
    vit.save(root / "data/checkpoints/vit_scenes/model.safetensors", vit.build(architecture), architecture)
    untrained_blip(root / "data/checkpoints/blip_scenes", sharp=5.0)
    small_catr(root / "data/checkpoints/catr_scenes")
    project.set_params(SMALL_PARAMS)
    project.set(  # and what the tests need: rows of their own, two seeds and the workers of a long run
        embedded__examples={"class_token": ["heart_1001", "three_1001"], "captions": 2},
        classification__settings={
            "base": {"lr": "base", "augment": False, "size": "base", "batch_size": 4, "accumulate": 1, "epochs": 1},
            "accumulated": {
                "lr": "base",
                "augment": True,
                "size": "large",
                "batch_size": 4,
                "accumulate": 2,
                "epochs": 2,
            },
        },
        backbones={},  # each would be two stages more
        compute__workers=2,
        captioning__seeds=[1, 2],
        retrieval__seeds=[1, 2],
        segmentation__heads={
            "linear": {"kind": "linear"},
            "transformer": {"kind": "transformer", "shared_qk": False},
        },
        captioning__cells={
            "greedy": {"type": "greedy", "prompt": "a picture of"},
            "k50_t1": {"type": "top_k", "k": 50, "temperature": 1.0, "prompt": "a picture of"},
            "beam": {"type": "beam", "beams": 3, "prompt": "this image shows"},
        },
        retrieval__finetune={"lr": 1e-3, "weight_decay": 0, "temperature": 0.1, "epochs": 1, "batch_size": 4},
        retrieval__grid={
            "mine": {
                "init": "scratch",
                "lr": 1e-2,
                "weight_decay": 0,
                "temperature": 0.5,
                "epochs": 2,
                "batch_size": 4,
            },
        },
    )
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "clone")
    pretrainings = ("pretrain", "pretrain_blip", "pretrain_catr")
    result = project.run("dvc", "commit", "-f", *pretrainings)  # as if trained with these params
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture(scope="session")
def clone_project(tmp_path_factory):
    """Make clones of the project."""
    return lambda: clone(tmp_path_factory.mktemp("clone"))
