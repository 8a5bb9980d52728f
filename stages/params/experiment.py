"""All of `params.yaml`: the active profile and the params of every task."""

import hashlib
from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from stages.params.attention import Attention
from stages.params.captioning import Captioning
from stages.params.classification import Classification
from stages.params.compute import Compute
from stages.params.pretrain import Pretrain
from stages.params.pretrain_blip import PretrainBlip
from stages.params.profiles import PROFILES, Embedded, Folder, Paper, Profile
from stages.params.retrieval import Retrieval
from stages.params.section import PARAMS, Section, Seed, join_alternatives, read_params, validate_params
from stages.params.segmentation import Segmentation


class Experiment(Section):
    """`params.yaml` as a whole. `profile` is the name of the active profile, one of `PROFILES`."""

    profile: str
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

    @field_validator("profile")
    @classmethod
    def _profile_exists(cls, name: str) -> str:
        if name not in PROFILES:
            raise ValueError(f"must be {join_alternatives([repr(known) for known in PROFILES])}")
        return name

    @model_validator(mode="after")
    def _attention_names_exist(self) -> Self:
        setting = self.attention.class_token.setting
        if setting not in self.classification.settings:
            available = ", ".join(self.classification.settings)
            raise ValueError(f"attention.class_token.setting = '{setting}': must be a setting: {available}")
        cell = self.attention.captions.cell
        if cell not in self.captioning.cells:
            raise ValueError(f"attention.captions.cell = '{cell}': must be a cell: {', '.join(self.captioning.cells)}")
        return self

    @property
    def active(self) -> Profile:
        """The section of the active profile."""
        return getattr(self, self.profile)

    @property
    def captioner(self) -> str | None:
        """The source of the captioning model; None if it is CATR and the profile has none."""
        return self.active.catr if self.captioning.model == "catr" else self.active.blip

    @property
    def has_captions(self) -> bool:
        """Whether the active profile's data may have captions."""
        return self.active.has_captions

    def seed_for(self, run: str) -> int:
        """Derive a run's seed from its name, so that it does not depend on which runs came before."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{run}".encode()).digest()[:4])


def load_experiment(path: Path = PARAMS) -> Experiment:
    """Read and validate `params.yaml`. Raises `InputError` with one line on the first problem."""
    return validate_params(Experiment, read_params(path))
