"""What comes over the network, and how much of it is there already."""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from stages.data.paper import unpacked_folder
from stages.fetch.download import remote_size
from stages.models import vit
from stages.models.checkpoints.hub import cache_folder, cached_snapshot
from stages.params.experiment import Experiment
from stages.params.model_source import display_name, is_checkpoint_file, is_url, split_revision
from stages.params.profiles import Paper
from stages.params.remote_file import RemoteFile


@dataclass(frozen=True)
class Download:
    """`size` is in bytes, None where nobody knows it without a network; `how` says where the number is from."""

    what: str
    origin: str
    target: Path
    size: int | None
    how: str
    there: bool


def downloads_of(experiment: Experiment) -> list[Download]:
    """In the order in which they are fetched. Other profiles than the paper's fetch models alone."""
    found = []
    if experiment.profile == "paper":
        paper = experiment.paper
        if paper.voc_root is None:
            found.append(_file("VOC 2012", paper.voc_archive, paper))
        if paper.pets_root is None:
            found += [_file("Oxford-IIIT Pet", address, paper) for address in paper.pets_archives]
        if paper.captions and is_url(paper.captions):
            found.append(_file("captions", paper.captions, paper))
    active = experiment.active
    asked = {"backbone": active.backbone, "classifier": active.classifier.backbone}
    if experiment.has_captions:
        asked["BLIP"] = active.blip
    if experiment.captioning.model == "catr" and active.catr:
        asked["CATR"] = active.catr
    return found + [one for name, source in asked.items() if (one := _model(name, source, experiment))]


def _file(what: str, address: str, paper: Paper) -> Download:
    remote = RemoteFile.parse(address)
    target, size = paper.downloads / remote.name, remote.size
    if target.is_file() or unpacked_folder(paper, remote).is_dir():
        size = target.stat().st_size if target.is_file() else remote.size
        return Download(what, _host(address), target, size, "", True)
    if size is not None:
        return Download(what, _host(address), target, size, "", False)
    size = remote_size(remote, paper.mirrors)
    return Download(what, _host(address), target, size, "asked", False)


def _model(name: str, source: str, experiment: Experiment) -> Download | None:
    if is_url(source):
        return _file(f"{name} {display_name(source)}", source, experiment.paper)
    if is_checkpoint_file(source) or Path(source).is_dir():
        return None
    bare, revision = split_revision(source)
    repository = bare if bare.count("/") == 1 else vit.pretrained_config(bare).hf_hub_id
    target = cache_folder(repository, experiment.paper.downloads)
    snapshot = cached_snapshot(repository, revision, experiment.paper.downloads)
    if snapshot:
        size = sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())
        return Download(f"{name} {bare}", "Hugging Face hub", target, size, "", True)
    size = None if bare.count("/") == 1 else weights_bytes(bare)
    return Download(f"{name} {bare}", "Hugging Face hub", target, size, "its parameters", False)


def weights_bytes(name: str) -> int:
    """What a timm model's weights take in single precision."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return 4 * sum(weight.numel() for weight in model.state_dict().values())


def _host(address: str) -> str:
    return address.split("/")[2]
