"""Brings a source of a model, whatever it is, to a place on this machine."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.stage import InputError
from stages.fetch.download import download_file
from stages.models.checkpoints.hub import WEIGHTS, download_model, find_weights
from stages.models.checkpoints.record import Checkpoint
from stages.params.model_source import is_checkpoint_file, is_url, split_revision
from stages.params.remote_file import RemoteFile

CONVERTERS = sorted((Path(__file__).parents[1]).glob("*.py"))
BLIP_FILES = ("*.json", "vocab.txt")


@dataclass(frozen=True)
class CheckpointResolver:
    """`downloads` takes what comes over the network; `vocabulary` is BERT's, for checkpoints that carry none."""

    downloads: Path
    vocabulary: str = ""
    mirrors: dict[str, str] = field(default_factory=dict)

    def vit(self, source: str) -> Checkpoint:
        """A ViT: a file, an address, or a pretrained timm model, `NAME` or `NAME@REVISION`."""
        if is_checkpoint_file(source):
            path = self.file(source)
            return Checkpoint(source, str(path), file_sha256(path))
        from stages.models.vit import pretrained_config  # timm takes seconds to import

        name, revision = split_revision(source)
        try:
            config = pretrained_config(name)
        except ValueError as fault:
            raise InputError(str(fault)) from fault
        weights = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS
        folder, commit = download_model(config.hf_hub_id, revision, self.downloads, ["config.json"], weights)
        path = find_weights(folder, weights)
        return Checkpoint(source, str(path), file_sha256(path), commit)

    def blip(self, source: str) -> Checkpoint:
        """A BLIP: a folder, `OWNER/NAME[@REVISION]` on the hub, or an original checkpoint's file or address.

        The last is converted, once, into a folder beside what was downloaded.
        """
        if is_checkpoint_file(source):
            return self._converted(source, _convert_blip)
        if Path(source).is_dir():
            return Checkpoint(source, source, file_sha256(find_weights(Path(source))))
        name, revision = split_revision(source)
        if name.count("/") != 1:
            raise InputError("no such folder; expected one, OWNER/NAME on the hub, or an original checkpoint's file")
        folder, commit = download_model(name, revision, self.downloads, BLIP_FILES)
        return Checkpoint(source, str(folder), file_sha256(find_weights(folder)), commit)

    def catr(self, source: str) -> Checkpoint:
        """A CATR checkpoint's file or address, put into a folder with the vocabulary."""
        if not is_checkpoint_file(source):
            raise InputError("expected a CATR checkpoint's file or address")
        return self._converted(source, _convert_catr)

    def words(self) -> Path:
        """BERT's `vocab.txt`."""
        if Path(self.vocabulary).is_file():
            return Path(self.vocabulary)
        name, revision = split_revision(self.vocabulary)
        if name.count("/") != 1:
            raise InputError(f"vocabulary = '{self.vocabulary}': expected a vocab.txt, or OWNER/NAME on the hub")
        return download_model(name, revision, self.downloads, ["vocab.txt"], ())[0] / "vocab.txt"

    def _converted(self, source: str, convert: Callable[[Path, Path, Path], None]) -> Checkpoint:
        """A checkpoint's file in the layout that is loaded; its folder is named after all that it is made from."""
        path, words = self.file(source), self.words()
        held = file_sha256(path)
        made_from = "".join([held, file_sha256(words), *map(file_sha256, CONVERTERS)])
        folder = self.downloads / "converted" / f"{path.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
        if not (folder / WEIGHTS[0]).is_file():  # which is written last
            print(f"{path}: converting")
            try:
                convert(path, words, folder)
            except ValueError as fault:
                raise InputError(f"{path}: {fault}") from fault
        return Checkpoint(source, str(folder), held)

    def file(self, source: str) -> Path:
        """A file where it lies, or downloaded from its address."""
        if is_url(source):
            return download_file(RemoteFile.parse(source), self.downloads, self.mirrors)
        if not Path(source).is_file():
            raise InputError("no such file")
        return Path(source)


def _convert_blip(path: Path, vocabulary: Path, folder: Path) -> None:
    from stages.models.blip_original import convert_file  # transformers takes seconds to import

    convert_file(path, vocabulary, folder)


def _convert_catr(path: Path, vocabulary: Path, folder: Path) -> None:
    from stages.models.catr import convert_file

    convert_file(path, vocabulary, folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
