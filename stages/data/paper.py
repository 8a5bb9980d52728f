"""The paper profile's data: in place where they are unpacked already, else downloaded, once."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.core.stage import InputError
from stages.data import voc
from stages.data.manifest import Manifest
from stages.data.oxford_pets import read_pets
from stages.data.voc_folder import read_folder
from stages.fetch.archive import extract_archive
from stages.fetch.download import download_file
from stages.params.model_source import is_url
from stages.params.profiles import Paper
from stages.params.remote_file import RemoteFile

VOC_LICENSE = "Flickr's terms of use, see host.robots.ox.ac.uk/pascal/VOC/voc2012"
VOC_PARTS = ("/JPEGImages/", "/SegmentationClass/", "/ImageSets/Segmentation/")  # of an archive with much more


def read_paper_voc(paper: Paper) -> Manifest:
    """VOC 2012's segmentation lists, with captions where `paper.captions` has them. Raises `InputError`."""
    captions = _captions(paper)
    if paper.voc_root:
        root = _in_place(paper.voc_root, "voc_root", "JPEGImages", "SegmentationClass", "ImageSets")
    else:
        (unpacked,) = _unpacked(paper, [paper.voc_archive], lambda name: any(part in f"/{name}" for part in VOC_PARTS))
        root = _holding("JPEGImages", [unpacked]).parent
    return read_folder(root, voc.CLASSES, captions, paper.voc_images.model_dump(), VOC_LICENSE)


def read_paper_pets(paper: Paper, masks: Path) -> Manifest:
    """Oxford-IIIT Pet; writes masks in VOC's values to `masks`. Raises `InputError`."""
    if paper.pets_root:
        folders = [_in_place(paper.pets_root, "pets_root", "images", "annotations")]
    else:
        folders = _unpacked(paper, paper.pets_archives, lambda name: not Path(name).name.startswith("._"))
    images, annotations = (_holding(name, folders) for name in ("images", "annotations"))
    return read_pets(images, annotations, masks, paper.pets_images.model_dump())


def _captions(paper: Paper) -> Path | None:
    if paper.captions is None:
        return None
    if is_url(paper.captions):
        return download_file(RemoteFile.parse(paper.captions), paper.downloads, paper.mirrors)
    if not Path(paper.captions).is_file():
        raise InputError(f"paper.captions = '{paper.captions}': no such file; a JSON of captions, its address, or null")
    return Path(paper.captions)


def _in_place(root: Path, key: str, *parts: str) -> Path:
    for part in parts:
        if not (root / part).is_dir():
            raise InputError(f"paper.{key} = '{root}': no {part}/ there; the unpacked data set, or null to download it")
    return root


def _unpacked(paper: Paper, addresses: Sequence[str], wanted: Callable[[str], bool]) -> list[Path]:
    """A folder an archive, each downloaded and unpacked unless it is there."""
    folders = []
    for address in addresses:
        remote = RemoteFile.parse(address)
        folder = unpacked_folder(paper, remote)
        if not folder.is_dir():
            extract_archive(download_file(remote, paper.downloads, paper.mirrors), folder, wanted)
        folders.append(folder)
    return folders


def unpacked_folder(paper: Paper, remote: RemoteFile) -> Path:
    """Where an archive is unpacked to: another archive of the same name goes elsewhere."""
    told = remote.digest[1] if remote.digest else hashlib.sha256(remote.url.encode()).hexdigest()
    return paper.downloads / "unpacked" / f"{remote.name.split('.tar')[0]}-{told[:12]}"


def _holding(name: str, folders: Sequence[Path]) -> Path:
    """The shallowest folder of that name."""
    found = [one for folder in folders for one in (folder, *folder.rglob("*")) if (one / name).is_dir()]
    if not found:
        raise InputError(f"{', '.join(map(str, folders))}: no {name}/ in what was unpacked; remove it to start anew")
    return min(found, key=lambda one: len(one.parts)) / name
