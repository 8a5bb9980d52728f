"""Resolves what a param names as a model to files on this machine: downloads and converts them if necessary."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from stages.core.hashes import file_sha256
from stages.core.messages import quote_value
from stages.core.stage import InputError
from stages.fetch.download import download_file
from stages.models.checkpoints.hub import WEIGHTS, download_model, find_weights
from stages.models.checkpoints.record import Checkpoint
from stages.params.model_source import CHECKPOINT_SUFFIXES, is_checkpoint_file, is_url, split_revision
from stages.params.profiles import Paper
from stages.params.remote_file import RemoteFile

BLIP_FILES = ("*.json", "vocab.txt")


@dataclass(frozen=True)
class CheckpointResolver:
    """`downloads` is the folder for files from the network; `vocabulary` is BERT's, for checkpoints without their own.

    All methods raise `InputError` for a source that cannot be resolved.
    """

    downloads: Path
    vocabulary: str = ""
    mirrors: Mapping[str, str] | None = None

    def resolve_vit(self, source: str) -> Checkpoint:
        """Resolve a ViT: a file, a URL, or a pretrained timm model as `NAME` or `NAME@REVISION`."""
        _check_suffix(source)
        if is_checkpoint_file(source):
            path = self._file(source)
            return Checkpoint(source, str(path), file_sha256(path))
        from stages.models.vit import pretrained_config  # timm takes seconds to import

        name, revision = split_revision(source)
        try:
            config = pretrained_config(name)
        except ValueError as error:
            raise InputError(str(error)) from error
        weights = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS
        folder, commit = download_model(str(config.hf_hub_id), revision, self.downloads, ["config.json"], weights)
        path = find_weights(folder, weights)
        return Checkpoint(source, str(path), file_sha256(path), commit)

    def resolve_blip(self, source: str) -> Checkpoint:
        """Resolve a BLIP: a folder, `OWNER/NAME[@REVISION]` on the hub, or an original checkpoint's file or URL."""
        _check_suffix(source)
        if is_checkpoint_file(source):
            return self._convert(source, "stages.models.blip_original")
        if Path(source).is_dir():
            return Checkpoint(source, source, file_sha256(find_weights(Path(source))))
        name, revision = split_revision(source)
        if name.count("/") != 1:
            raise InputError("no such folder; allowed are a folder, OWNER/NAME on the hub, or an original checkpoint")
        folder, commit = download_model(name, revision, self.downloads, BLIP_FILES)
        return Checkpoint(source, str(folder), file_sha256(find_weights(folder)), commit)

    def resolve_catr(self, source: str) -> Checkpoint:
        """Resolve a CATR: a folder with its weights and tokenizer, or a published checkpoint's file or URL."""
        if is_checkpoint_file(source):
            return self._convert(source, "stages.models.catr")
        if not Path(source).is_dir():
            raise InputError("no such folder; allowed are a folder, or a CATR checkpoint's file or URL")
        return Checkpoint(source, source, file_sha256(find_weights(Path(source), WEIGHTS[:1])))

    def _convert(self, source: str, module: str) -> Checkpoint:
        """Convert a checkpoint with `convert_file` of a module, into a folder named after what it depends on.

        The folder is not converted again when the code changes: delete it for that.
        """
        path = self._file(source)
        vocabulary = self._vocabulary_file()
        sha256 = file_sha256(path)
        key = hashlib.sha256(f"{sha256}{file_sha256(vocabulary)}".encode()).hexdigest()
        folder = self.downloads / "converted" / f"{path.stem}-{key[:12]}"
        if not (folder / WEIGHTS[0]).is_file():  # written last
            print(f"{path}: converting")
            convert_file = import_module(module).convert_file  # here, as transformers takes seconds to import
            try:
                convert_file(path, vocabulary, folder)
            except ValueError as error:
                raise InputError(str(error)) from error
        return Checkpoint(source, str(folder), sha256)

    def _vocabulary_file(self) -> Path:
        """Return the path of BERT's `vocab.txt`."""
        if Path(self.vocabulary).is_file():
            return Path(self.vocabulary)
        name, revision = split_revision(self.vocabulary)
        if name.count("/") != 1:
            raise InputError(f"vocabulary = '{self.vocabulary}': expected a vocab.txt, or OWNER/NAME on the hub")
        folder, _ = download_model(name, revision, self.downloads, ["vocab.txt"], weights=())
        return folder / "vocab.txt"

    def _file(self, source: str) -> Path:
        if is_url(source):
            return download_file(RemoteFile.parse(source), self.downloads, self.mirrors)
        if not Path(source).is_file():
            raise InputError("no such file")
        return Path(source)


def _check_suffix(source: str) -> None:
    """Raise `InputError` for the URL of another kind of file, which would be taken for a model's name."""
    if is_url(source) and not is_checkpoint_file(source):
        raise InputError(f"expected the URL of a file that ends in {', '.join(CHECKPOINT_SUFFIXES)}")


RESOLVERS: dict[str, Callable[[CheckpointResolver, str], Checkpoint]] = {
    "backbone": CheckpointResolver.resolve_vit,
    "blip": CheckpointResolver.resolve_blip,
    "classifier": CheckpointResolver.resolve_vit,
    "catr": CheckpointResolver.resolve_catr,
}


def resolve_model(kind: str, key: str, source: str, paper: Paper) -> Checkpoint:
    """Resolve the `source` that the param `key` gives for a kind of model; raise `InputError` with both if that fails.

    The download folder and the mirrors of `paper` serve every profile.
    """
    resolver = CheckpointResolver(paper.downloads, paper.vocabulary, paper.mirrors)
    try:
        return RESOLVERS[kind](resolver, source)
    except (InputError, ValueError) as error:
        raise InputError(f"{key} = {quote_value(source)}: {error}") from error
