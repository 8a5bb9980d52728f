"""Profiles: where images and pretrained models come from, and what suits them."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from stages.params.attention import ExampleImages
from stages.params.classification import Classifier
from stages.params.model_source import ModelSource, is_url
from stages.params.remote_file import RemoteFile
from stages.params.section import Between, Count, Section, Seed, Side

# At most 1000 images for each of the 20 classes, as validation images are numbered from 1001 within their class.
ObjectCount = Annotated[int, Between(1, 20_000)]


def _check_url(text: str) -> str:
    RemoteFile.parse(text)
    return text


def _check_path_or_url(text: str) -> str:
    return _check_url(text) if is_url(text) else text


FileUrl = Annotated[str, AfterValidator(_check_url)]  # URL#sha256=HEX&size=BYTES
PathOrUrl = Annotated[str, AfterValidator(_check_path_or_url)]


class ViewParams(Section):
    """A training view: the short side is resized to a random length in pixels, then a random square is cropped."""

    short_side_min: Side
    short_side_max: Side
    crop: Side

    @model_validator(mode="after")
    def _sides_are_ordered(self) -> Self:
        if self.short_side_max < self.short_side_min:
            limit = f"at least short_side_min, {self.short_side_min}"
            raise ValueError(f"short_side_max = {self.short_side_max}: must be {limit}")
        return self


class Profile(Section):
    """What all profiles have: model sources (see `model_source.py`), view sizes, and images for the figures.

    `catr` is the captioner for `captioning.model: catr`; null if the profile has none.
    """

    backbone: ModelSource
    blip: ModelSource
    catr: ModelSource | None
    classifier: Classifier
    view: ViewParams
    examples: ExampleImages

    @property
    def has_captions(self) -> bool:
        """Whether the data may have captions."""
        return True


class Embedded(Profile):
    """Generated scenes, and images of single objects for classification."""

    seed: Seed
    train: Count
    val: Count
    objects_train: ObjectCount
    objects_val: Count


class Folder(Profile):
    """A directory in the layout of VOC. Images of more than `max_pixels` are refused."""

    path: Path
    max_pixels: Count


class SplitSizes(Section):
    """Required number of images per split. Other numbers mean another data set, or an incomplete one."""

    train: Count
    val: Count


class Paper(Profile):
    """VOC 2012 with captions, and Oxford-IIIT Pet.

    `voc_root` is an extracted `VOC2012` folder, `pets_root` a folder with `images/` and `annotations/`; both are used
    in place. If null, the archives are downloaded to `downloads`. `captions` is a file or URL, or null for none.
    `mirrors` maps URL prefixes to prefixes that are tried next. `vocabulary` is BERT's, a `vocab.txt` or a model on the
    hub, for checkpoints without one.
    """

    downloads: Path
    voc_root: Path | None
    voc_archive: FileUrl
    voc_images: SplitSizes
    pets_root: Path | None
    pets_archives: Annotated[list[FileUrl], Field(min_length=1)]
    pets_images: SplitSizes
    captions: PathOrUrl | None
    mirrors: dict[str, str]
    vocabulary: ModelSource

    @property
    def has_captions(self) -> bool:
        """Whether `captions` names any."""
        return self.captions is not None


class OtherProfile(Profile):
    """A profile added to `params.yaml`: its data source in `stages/data` checks the keys that other profiles lack."""

    model_config = ConfigDict(extra="allow")
