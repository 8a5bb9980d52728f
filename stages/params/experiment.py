"""All of `params.yaml`: the active profile and the params of every task."""

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from stages.core.messages import join_names, quote_value
from stages.params.attention import Attention
from stages.params.backbones import ComparedBackbone
from stages.params.captioning import Captioning, CaptionModel
from stages.params.classification import Classification
from stages.params.compute import Compute
from stages.params.pretrain import Pretrain
from stages.params.pretrain_blip import PretrainBlip
from stages.params.pretrain_catr import PretrainCatr
from stages.params.profiles import Embedded, Folder, OtherProfile, Paper, Profile
from stages.params.retrieval import Retrieval
from stages.params.section import (
    PARAMS,
    Name,
    Section,
    Seed,
    join_alternatives,
    read_params,
    unknown_key,
    validate_params,
)
from stages.params.segmentation import Segmentation


class Experiment(Section):
    """`params.yaml` as a whole. `profile` is the name of the active profile's section.

    Sections besides those below are further profiles: a new data source needs no change to the params.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, OtherProfile] = Field(init=False)

    profile: str
    seed: Seed
    embedded: Embedded
    folder: Folder
    paper: Paper
    compute: Compute
    pretrain: Pretrain
    pretrain_blip: PretrainBlip
    pretrain_catr: PretrainCatr
    segmentation: Segmentation
    captioning: Captioning
    retrieval: Retrieval
    classification: Classification
    attention: Attention
    backbones: dict[Name, ComparedBackbone]

    @model_validator(mode="before")
    @classmethod
    def _unknown_sections_are_profiles(cls, content: Any) -> Any:
        """Name a misspelled key as such. A profile has a backbone."""
        for key, value in content.items():
            if key not in cls.model_fields and not (isinstance(value, dict) and "backbone" in value):
                raise ValueError(unknown_key(key, value, [*cls.model_fields, "or a profile's name"]))
        return content

    @model_validator(mode="after")
    def _profile_exists(self) -> Self:
        profiles = [name for name, section in self if isinstance(section, Profile)]
        if self.profile not in profiles:
            known = join_alternatives([repr(name) for name in profiles])
            raise ValueError(f"profile = {quote_value(self.profile)}: must be {known}")
        return self

    @model_validator(mode="after")
    def _attention_names_exist(self) -> Self:
        setting = self.attention.class_token.setting
        if setting not in self.classification.settings:
            available = join_names(list(self.classification.settings))
            raise ValueError(f"attention.class_token.setting = '{setting}': must be a setting: {available}")
        cell = self.attention.captions.cell
        if cell not in self.captioning.cells:
            available = join_names(list(self.captioning.cells))
            raise ValueError(f"attention.captions.cell = '{cell}': must be a cell: {available}")
        return self

    @property
    def active(self) -> Profile:
        """The section of the active profile."""
        return dict(self)[self.profile]  # not an attribute, which may be a method of this class

    def captioner_source(self, kind: CaptionModel) -> str | None:
        """The source of a captioning model; None if it is CATR and the profile has none."""
        return self.active.catr if kind == "catr" else self.active.blip

    def seed_for(self, name: str, seed: int | None = None) -> int:
        """Derive the seed of a run, or of another use, from its name: it does not depend on what was drawn before.

        `seed` is one of a task's `seeds`, for a run that is repeated with each of them; by default, the params' own.
        """
        base = self.seed if seed is None else seed
        return int.from_bytes(hashlib.sha256(f"{base}/{name}".encode()).digest()[:4])


def load_experiment(path: Path = PARAMS) -> Experiment:
    """Read and validate `params.yaml`. Raises `InputError` with one line on the first problem."""
    return validate_params(Experiment, read_params(path))
