"""Brings a source of a model, whatever it is, to a place on this machine."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from stages.checkpoints.hub import WEIGHTS, fetch_model, weights_in
from stages.checkpoints.record import Checkpoint
from stages.download import fetch
from stages.remote import Remote
from stages.source import is_file, split_revision
from stages.stage import InputError

SIDE = 384  # of BLIP's images in the protocol: an original checkpoint's position embeddings are resampled to it
BLIP_FILES = ("*.json", "vocab.txt")


@dataclass(frozen=True)
class Shelf:
    """`downloads` takes what comes over the network; `vocabulary` is BERT's, for checkpoints that carry none."""

    downloads: Path
    vocabulary: str = ""
    mirrors: dict[str, str] = field(default_factory=dict)

    def vit(self, source: str) -> Checkpoint:
        """A ViT: a file, an address, or a pretrained timm model, `NAME` or `NAME@REVISION`."""
        if is_file(source):
            path = self.file(source)
            return Checkpoint(source, str(path), digest(path))
        from stages.backbones.vit import pretrained_config  # timm takes seconds to import

        name, revision = split_revision(source)
        try:
            config = pretrained_config(name)
        except ValueError as fault:
            raise InputError(str(fault)) from fault
        weights = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS
        folder, commit = fetch_model(config.hf_hub_id, revision, self.downloads, ["config.json"], weights)
        path = next(folder / one for one in weights if (folder / one).is_file())
        return Checkpoint(source, str(path), digest(path), commit)

    def blip(self, source: str) -> Checkpoint:
        """A BLIP: a folder, `OWNER/NAME[@REVISION]` on the hub, or an original checkpoint's file or address.

        The last is converted, once, into a folder beside what was downloaded.
        """
        if is_file(source):
            path = self.file(source)
            held = digest(path)
            folder = self.downloads / "converted" / f"{path.stem}-{held[:12]}"
            if not (folder / WEIGHTS[0]).is_file():
                _convert_blip(path, self.words(), folder)
            return Checkpoint(source, str(folder), held)
        if Path(source).is_dir():
            return Checkpoint(source, source, digest(weights_in(Path(source))))
        name, revision = split_revision(source)
        if name.count("/") != 1:
            raise InputError("no such folder; expected one, OWNER/NAME on the hub, or an original checkpoint's file")
        folder, commit = fetch_model(name, revision, self.downloads, BLIP_FILES)
        return Checkpoint(source, str(folder), digest(weights_in(folder)), commit)

    def catr(self, source: str) -> Checkpoint:
        """A CATR checkpoint's file or address, put into a folder with the vocabulary."""
        if not is_file(source):
            raise InputError("expected a CATR checkpoint's file or address")
        path = self.file(source)
        held = digest(path)
        folder = self.downloads / "converted" / f"{path.stem}-{held[:12]}"
        if not (folder / WEIGHTS[0]).is_file():
            _convert_catr(path, self.words(), folder)
        return Checkpoint(source, str(folder), held)

    def words(self) -> Path:
        """BERT's `vocab.txt`."""
        if Path(self.vocabulary).is_file():
            return Path(self.vocabulary)
        name, revision = split_revision(self.vocabulary)
        if name.count("/") != 1:
            raise InputError(f"vocabulary = '{self.vocabulary}': expected a vocab.txt, or OWNER/NAME on the hub")
        return fetch_model(name, revision, self.downloads, ["vocab.txt"], ())[0] / "vocab.txt"

    def file(self, source: str) -> Path:
        """A file where it lies, or downloaded from its address."""
        if source.startswith(("http://", "https://")):
            return fetch(Remote.parse(source), self.downloads, self.mirrors)
        if not Path(source).is_file():
            raise InputError("no such file")
        return Path(source)


def _convert_blip(path: Path, vocabulary: Path, folder: Path) -> None:
    from stages.backbones.blip_original import convert_file  # transformers takes seconds to import

    _converted(path, lambda: convert_file(path, vocabulary, folder, SIDE))


def _convert_catr(path: Path, vocabulary: Path, folder: Path) -> None:
    from stages.backbones import catr

    _converted(path, lambda: catr.convert_file(path, vocabulary, folder))


def _converted(path: Path, convert) -> None:
    print(f"{path}: converting")
    try:
        convert()
    except ValueError as fault:
        raise InputError(f"{path}: {fault}") from fault


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
