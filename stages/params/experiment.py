"""All of `params.yaml`: the profile in force and what the experiment asks."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.attention import Attention, ExampleImages
from stages.params.captioning import Captioning
from stages.params.classification import Classification, Classifier
from stages.params.compute import Compute
from stages.params.paper import Address, FileOrAddress, Images
from stages.params.pretrain import Pretrain
from stages.params.pretrain_blip import PretrainBlip
from stages.params.retrieval import Retrieval
from stages.params.section import PARAMS, Count, Name, Rate, Section, Seed, Weight, read_params, validate_params

MOST_PETS = 20_000  # a thousand of each class: numbers of `val` begin behind them


class ViewParams(Section):
    """A training view: the short side resized to a random length in pixels, then a random square crop."""

    short_side_min: Count
    short_side_max: Count
    crop: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.short_side_max < self.short_side_min:
            least = f"at least short_side_min, {self.short_side_min}"
            raise ValueError(f"short_side_max = {self.short_side_max}: must be {least}")
        return self


class Profile(Section):
    """Where a profile's models come from, what suits them, and which of its images are looked at.

    `catr` is the second report's captioner, for `captioning.model: catr`; null where a profile has none.
    """

    backbone: str
    blip: str
    catr: str | None
    classifier: Classifier
    view: ViewParams
    examples: ExampleImages


class Embedded(Profile):
    """Generated scenes, and pictures of one thing each for classification."""

    seed: Seed
    train: Count
    val: Count
    objects_train: Annotated[Count, Field(le=MOST_PETS)]
    objects_val: Count


class Folder(Profile):
    """A directory in VOC's layout."""

    path: Path


class Paper(Profile):
    """VOC 2012 with captions, and Oxford-IIIT Pet.

    `voc_root` is an unpacked `VOC2012` folder and `pets_root` one that holds `images/` and `annotations/`; both are
    used in place, and where they are null, archives are downloaded. `downloads` holds what came over the network.
    `captions` is a file or an address, null for none. `mirrors` maps beginnings of addresses to others that are tried
    next.
    `vocabulary` is BERT's, a `vocab.txt` or a model on the hub, for checkpoints that carry none.
    """

    downloads: Path
    voc_root: Path | None
    voc_archive: Address
    voc_images: Images
    pets_root: Path | None
    pets_archives: Annotated[list[Address], Field(min_length=1)]
    pets_images: Images
    captions: FileOrAddress | None
    mirrors: dict[str, str]
    vocabulary: str


class Head(Section):
    """One segmentation head. `kernel` is the convolutional head's, `shared_qk` the transformer's."""

    kind: Literal["linear", "convolutional", "transformer"]
    kernel: Count | None = None
    shared_qk: bool | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> Self:
        for key, owner in (("kernel", "convolutional"), ("shared_qk", "transformer")):
            value = getattr(self, key)
            if value is not None and self.kind != owner:
                raise ValueError(f"{key} = {value}: belongs to kind '{owner}', not '{self.kind}'")
            if value is None and self.kind == owner:
                raise ValueError(f"{key} is missing: kind '{owner}' needs it")
        return self


class Segmentation(Section):
    """The segmentation task: views to extract, and how every head trains on them."""

    views: Count
    epochs: Count
    batch_size: Count
    lr: Rate
    weight_decay: Weight
    heads: dict[Name, Head] = Field(min_length=1)

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        if self.views > self.epochs:
            most = f"at most epochs, {self.epochs} (epoch e sees view e mod views)"
            raise ValueError(f"views = {self.views}: must be {most}")
        return self


class Experiment(Section):
    """`params.yaml` as a whole."""

    profile: Literal["embedded", "folder", "paper"]
    seed: Seed
    embedded: Embedded
    folder: Folder
    paper: Paper
    compute: Compute
    pretrain: Pretrain
    pretrain_blip: PretrainBlip
    segmentation: Segmentation
    captioning: Captioning
    retrieval: Retrieval
    classification: Classification
    attention: Attention

    @model_validator(mode="after")
    def _runs_that_are_looked_at(self) -> Self:
        for key, name, names in (
            ("class_token.setting", self.attention.class_token.setting, self.classification.settings),
            ("captions.cell", self.attention.captions.cell, self.captioning.cells),
        ):
            if name not in names:
                raise ValueError(f"attention.{key} = '{name}': there are {', '.join(names)}")
        return self

    @property
    def active(self) -> Profile:
        """The section of the profile in force."""
        return getattr(self, self.profile)

    @property
    def captioner(self) -> str | None:
        """The source of the model that captions; None where the profile has no CATR that was asked for."""
        return self.active.catr if self.captioning.model == "catr" else self.active.blip

    @property
    def has_captions(self) -> bool:
        """Whether there can be captions: the paper's VOC has those that params name."""
        return self.profile != "paper" or self.paper.captions is not None

    def seed_for(self, run: str) -> int:
        """The seed of a run, from its name, so that no run's numbers hang on what ran before it."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{run}".encode()).digest()[:4])


def load_experiment(path: Path = PARAMS) -> Experiment:
    """Read and validate `params.yaml`; raises `InputError` with one line on the first fault."""
    return validate_params(Experiment, read_params(path))
