"""What is downloaded for a profile: data and models, with their sizes."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch

from stages.data.paper import unpacked_folder
from stages.fetch.download import remote_size
from stages.models import vit
from stages.models.checkpoints.__main__ import requested_models
from stages.models.checkpoints.hub import cache_folder, cached_snapshot
from stages.params.backbones import OWN_SOURCES
from stages.params.experiment import Experiment
from stages.params.model_source import display_name, is_checkpoint_file, is_url, split_revision
from stages.params.remote_file import RemoteFile
from stages.plan.placeholder_models import weight_bytes


@dataclass(frozen=True)
class Download:
    """One download; `size` in bytes, None if unknown; `note` says where an estimated size comes from."""

    name: str
    origin: str
    target: Path
    size: int | None
    exists: bool
    note: str = ""


def paper_files(experiment: Experiment) -> list[tuple[str, str]]:
    """Names and URLs of VOC 2012, Oxford-IIIT Pet and the captions, unless params.yaml names local copies."""
    paper = experiment.paper
    files = [] if paper.voc_root else [("VOC 2012", paper.voc_archive)]
    files += [] if paper.pets_root else [("Oxford-IIIT Pet", url) for url in paper.pets_archives]
    if paper.captions and is_url(paper.captions):
        files.append(("captions", paper.captions))
    return files


# By profile. The images of the other profiles are generated, or in a folder on this machine.
DATA_FILES = {"paper": paper_files}


# Kinds of models whose name in the plan is an abbreviation.
MODEL_NAMES = {"blip": "BLIP", "catr": "CATR"}


def list_downloads(experiment: Experiment) -> list[Download]:
    """All downloads of the profile, in the order in which they are made."""
    files = DATA_FILES[experiment.profile](experiment) if experiment.profile in DATA_FILES else []
    downloads = [file_download(name, url, experiment) for name, url in files]
    sources = [(MODEL_NAMES.get(kind, kind), source) for kind, (_, source) in requested_models(experiment).items()]
    for key, backbone in experiment.backbones.items():
        if not backbone.random and backbone.source not in OWN_SOURCES:
            sources.append((f"backbone {key}:", backbone.source))
    for name, source in sources:
        if source and is_url(source):
            downloads.append(file_download(f"{name} {display_name(source)}", source, experiment))
        elif source and not is_checkpoint_file(source) and not Path(source).is_dir():
            downloads.append(hub_download(name, source, experiment))
    return downloads


def file_download(name: str, url: str, experiment: Experiment) -> Download:
    """A file from the web; asks the server for its size if params.yaml does not have it."""
    remote = RemoteFile.parse(url)
    target = experiment.paper.downloads / remote.name
    exists = target.is_file() or unpacked_folder(experiment.paper, remote).is_dir()
    size = target.stat().st_size if target.is_file() else remote.size
    note = ""
    if size is None and not exists:
        size = remote_size(remote, experiment.paper.mirrors)
        note = "from the server"
    return Download(name, urlsplit(remote.url).hostname or "", target, size, exists, note)


def hub_download(name: str, source: str, experiment: Experiment) -> Download:
    """A model on the Hugging Face hub, `OWNER/NAME` or timm's name, with `@REVISION` or without."""
    model, revision = split_revision(source)
    is_timm = model.count("/") != 1
    repository = vit.pretrained_config(model).hf_hub_id if is_timm else model
    assert repository is not None  # every pretrained timm model is on the hub
    folder, size = find_cached_model(repository, revision, experiment.paper.downloads)
    exists = size is not None
    if is_timm and not exists:
        with torch.device("meta"):  # allocates no memory
            size = weight_bytes(timm.create_model(model, pretrained=False))
    return Download(
        f"{name} {model}", "Hugging Face hub", folder, size, exists, "" if exists else "from its parameters"
    )


def find_cached_model(repository: str, revision: str | None, downloads: Path) -> tuple[Path, int | None]:
    """Return the folder of a model of the hub and its size in bytes, None if it is not downloaded yet."""
    folder = cache_folder(repository, downloads)
    snapshot = cached_snapshot(repository, revision, downloads)
    if snapshot is None:
        return folder, None
    return folder, sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())
