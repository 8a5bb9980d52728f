"""The `paper` source: VOC 2012 and Oxford-IIIT Pet, used in place if they are unpacked already, else downloaded."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.core.stage import InputError
from stages.data import voc
from stages.data.manifest import OBJECTS, Manifest
from stages.data.oxford_pets import read_pets
from stages.data.voc_folder import read_folder
from stages.fetch.archive import extract_archive
from stages.fetch.download import download_file
from stages.params.model_source import is_url
from stages.params.profiles import Paper
from stages.params.remote_file import RemoteFile

VOC_LICENSE = "Flickr's terms of use, see host.robots.ox.ac.uk/pascal/VOC/voc2012"
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets")
VOC_PARTS = ("/JPEGImages/", "/SegmentationClass/", "/ImageSets/Segmentation/")  # the archive has other parts too


class PaperSource:
    """VOC 2012 for all tasks, and Oxford-IIIT Pet for classification."""

    def __init__(self, params: Paper) -> None:
        self.params = params

    def read(self) -> Manifest:
        return read_paper_voc(self.params)

    def read_labeled(self, manifest: Manifest) -> Manifest:
        return read_paper_pets(self.params, OBJECTS / "SegmentationClass")


def read_paper_voc(paper: Paper) -> Manifest:
    """Return the manifest of VOC 2012's segmentation lists, with the captions of `paper.captions` if it is set.

    Raises `InputError`.
    """
    captions = _resolve_captions(paper)
    if paper.voc_root:
        root = _check_root(paper.voc_root, "voc_root", VOC_FOLDERS)
    else:
        folders = _unpack(paper, [paper.voc_archive], lambda name: any(part in f"/{name}" for part in VOC_PARTS))
        root = _find_folder("JPEGImages", folders).parent
    return read_folder(root, voc.CLASSES, captions, paper.voc_images.model_dump(), VOC_LICENSE)


def read_paper_pets(paper: Paper, masks: Path) -> Manifest:
    """Return the manifest of Oxford-IIIT Pet; write masks with VOC's values to the folder `masks`.

    Raises `InputError`.
    """
    if paper.pets_root:
        folders = [_check_root(paper.pets_root, "pets_root", ("images", "annotations"))]
    else:
        # Files named ._* hold macOS metadata.
        folders = _unpack(paper, paper.pets_archives, lambda name: not Path(name).name.startswith("._"))
    images = _find_folder("images", folders)
    annotations = _find_folder("annotations", folders)
    return read_pets(images, annotations, masks, paper.pets_images.model_dump())


def _resolve_captions(paper: Paper) -> Path | None:
    if paper.captions is None:
        return None
    if is_url(paper.captions):
        return download_file(RemoteFile.parse(paper.captions), paper.downloads, paper.mirrors)
    if not Path(paper.captions).is_file():
        expected = "give a JSON file of captions, its URL or null"
        raise InputError(f"paper.captions = '{paper.captions}': no such file; {expected}")
    return Path(paper.captions)


def _check_root(root: Path, key: str, folders: Sequence[str]) -> Path:
    for folder in folders:
        if not (root / folder).is_dir():
            expected = "give the folder of the unpacked data set, or null to download it"
            raise InputError(f"paper.{key} = '{root}': no {folder}/ there; {expected}")
    return root


def _unpack(paper: Paper, urls: Sequence[str], is_needed: Callable[[str], bool]) -> list[Path]:
    """Return one folder per archive. Archives that are not unpacked yet are downloaded and unpacked."""
    folders = []
    for url in urls:
        remote = RemoteFile.parse(url)
        folder = unpacked_folder(paper, remote)
        if not folder.is_dir():
            archive = download_file(remote, paper.downloads, paper.mirrors)
            extract_archive(archive, folder, is_needed)
        folders.append(folder)
    return folders


def unpacked_folder(paper: Paper, remote: RemoteFile) -> Path:
    """Return the folder that an archive is unpacked to.

    It is named after the archive's digest as well: another archive with the same file name has a folder of its own.
    """
    digest = remote.digest[1] if remote.digest else hashlib.sha256(remote.url.encode()).hexdigest()
    return paper.downloads / "unpacked" / f"{remote.name.split('.tar')[0]}-{digest[:12]}"


def _find_folder(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder `name` with the fewest path components, in or below `roots`."""
    folders = [folder for root in roots for folder in (root, *root.rglob("*"))]
    parents = [folder for folder in folders if (folder / name).is_dir()]
    if not parents:
        unpacked = ", ".join(str(root) for root in roots)
        raise InputError(f"{unpacked}: no {name}/ among the unpacked files; remove what was unpacked to start again")
    return min(parents, key=lambda folder: len(folder.parts)) / name
