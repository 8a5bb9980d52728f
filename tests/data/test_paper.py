"""The paper source: VOC and Oxford-IIIT Pet, downloaded or used in place, with captions."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import paper_site
import pytest
from conftest import ROOT
from loopback import Loopback
from paper_site import COUNTS, PETS

from stages.core.stage import InputError
from stages.data import voc
from stages.data.paper import read_paper_pets, read_paper_voc
from stages.fetch import download
from stages.params.profiles import Paper
from stages.params.section import read_params


def refusal(read, *arguments):
    with pytest.raises(InputError) as caught:
        read(*arguments)
    return str(caught.value)


@pytest.fixture(scope="module")
def contents():
    """The archives and captions of `paper_site`, by path."""
    rng = np.random.default_rng(0)
    archive, captions = paper_site.voc(rng)
    images, annotations = paper_site.pets(rng)
    return {
        "/voc/VOCtrainval.tar": archive,
        "/captions.json": json.dumps(captions).encode(),
        "/pets/images.tar.gz": images,
        "/pets/annotations.tar.gz": annotations,
    }


class Site(Loopback):
    """A server with the data sets, and the params that point at it."""

    def remote(self, path):
        content = self.files[path]
        return f"{self.url(path)}#sha256={hashlib.sha256(content).hexdigest()}&size={len(content)}"

    def paper(self, downloads, **changes):
        params = {
            "downloads": downloads,
            "voc_archive": self.remote("/voc/VOCtrainval.tar"),
            "voc_images": dict(COUNTS),
            "pets_archives": [self.remote(f"/pets/{name}.tar.gz") for name in ("images", "annotations")],
            "pets_images": dict(PETS),
            "captions": self.remote("/captions.json"),
            "mirrors": {},
        }
        return Paper.model_validate(read_params(ROOT / "params.yaml")["paper"] | params | changes)


@pytest.fixture
def site(contents, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    with Site(dict(contents)) as server:
        yield server


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


def extract(content, folder):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_voc_is_downloaded_once_and_only_the_needed_parts_are_unpacked(site, downloads, contents):
    manifest = read_paper_voc(site.paper(downloads))
    assert [len(manifest.split(split)) for split in COUNTS] == list(COUNTS.values())
    assert (manifest.classes, manifest.labels) == (voc.CLASSES, ())
    assert "Flickr" in manifest.license
    captions = json.loads(contents["/captions.json"])
    assert all(row.captions == (captions[row.image_id],) for row in manifest.rows)
    assert {(row.height, row.width) for row in manifest.split("val")} == {(70 + 3 * i, 110 - 5 * i) for i in range(6)}
    (unpacked,) = (downloads / "unpacked").glob("VOCtrainval-*")
    parts = {Path(name).parts[2] for name in files_below(unpacked)}
    assert parts == {"JPEGImages", "SegmentationClass", "ImageSets"}  # the archive has Annotations/ too
    paper = site.paper(downloads)
    site.stop()
    assert read_paper_voc(paper) == manifest


def test_voc_in_place_needs_no_network_and_stays_unchanged(site, downloads, contents, tmp_path):
    root = extract(contents["/voc/VOCtrainval.tar"], tmp_path / "unpacked") / "VOCdevkit/VOC2012"
    before = files_below(root)
    captions = tmp_path / "captions.json"
    captions.write_bytes(contents["/captions.json"])
    paper = site.paper(downloads, voc_root=str(root), captions=str(captions))
    site.stop()
    manifest = read_paper_voc(paper)
    assert manifest.source == str(root)
    assert all(Path(row.image).is_relative_to(root) and row.captions for row in manifest.rows)
    assert not downloads.exists()
    assert files_below(root) == before


def test_captions_are_optional(site, downloads):
    manifest = read_paper_voc(site.paper(downloads, captions=None))
    assert not any(row.captions for row in manifest.rows)
    assert site.count("/captions.json") == 0


@pytest.mark.parametrize("part", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_an_incomplete_voc_root_is_refused(site, downloads, tmp_path, part):
    for name in {"JPEGImages", "SegmentationClass", "ImageSets"} - {part}:
        (tmp_path / "voc" / name).mkdir(parents=True)
    message = refusal(read_paper_voc, site.paper(downloads, voc_root=str(tmp_path / "voc"), captions=None))
    assert message == (
        f"paper.voc_root = '{tmp_path / 'voc'}': no {part}/ there; "
        "give the folder of the unpacked data set, or null to download it"
    )


def test_an_incomplete_pets_root_is_refused(site, downloads, tmp_path):
    (tmp_path / "images").mkdir()
    message = refusal(read_paper_pets, site.paper(downloads, pets_root=str(tmp_path)), tmp_path / "masks")
    assert f"paper.pets_root = '{tmp_path}': no annotations/ there" in message


def test_a_missing_captions_file_is_refused_before_anything_is_downloaded(site, downloads):
    message = refusal(read_paper_voc, site.paper(downloads, captions="missing.json"))
    assert message == "paper.captions = 'missing.json': no such file; give a JSON file of captions, its URL or null"
    assert site.count("/voc/VOCtrainval.tar") == 0


def test_wrong_numbers_of_images_are_listed_at_once(site, downloads):
    message = refusal(read_paper_voc, site.paper(downloads, voc_images={"train": 1464, "val": 1449}))
    assert f"train.txt: {COUNTS['train']} images; expected 1464" in message
    assert f"val.txt: {COUNTS['val']} images; expected 1449" in message
    assert ": 2 problems." in message


def test_images_without_captions_are_named(site, downloads, contents):
    captions = json.loads(contents["/captions.json"])
    first, second, *_ = sorted(captions)
    del captions[first]
    captions[second] = []
    site.files["/captions.json"] = json.dumps(captions).encode()
    message = refusal(read_paper_voc, site.paper(downloads))
    assert f"captions.json: no caption for {first}, {second}" in message


@pytest.mark.parametrize("path", ["/voc/VOCtrainval.tar", "/captions.json", "/pets/images.tar.gz"])
def test_without_a_network_the_message_says_which_file_to_put_where(site, downloads, contents, tmp_path, path):
    paper = site.paper(downloads)
    expected = PETS if "pets" in path else COUNTS

    def read():
        return read_paper_pets(paper, tmp_path / "masks") if "pets" in path else read_paper_voc(paper)

    downloads.mkdir()
    if path.startswith("/voc"):  # captions are read first
        (downloads / "captions.json").write_bytes(contents["/captions.json"])
    site.stop()
    message = refusal(read)
    name = Path(path).name
    assert "\n" not in message
    assert site.url(path) in message
    assert hashlib.sha256(contents[path]).hexdigest() in message and str(len(contents[path])) in message
    assert message.endswith(f"put it at {downloads / name}")
    for content_path, content in contents.items():
        (downloads / Path(content_path).name).write_bytes(content)
    assert len(read().rows) == sum(expected.values())


def test_mirrors_are_tried_next(site, downloads, contents):
    site.files["/mirror/VOCtrainval.tar"] = contents["/voc/VOCtrainval.tar"]
    paper = site.paper(downloads, mirrors={site.url("/voc/"): site.url("/mirror/")})
    del site.files["/voc/VOCtrainval.tar"]
    assert len(read_paper_voc(paper).rows) == sum(COUNTS.values())


def test_a_malicious_archive_is_refused_and_nothing_is_unpacked(site, downloads):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("VOCdevkit/../../../evil.txt"))
    site.files["/voc/VOCtrainval.tar"] = buffer.getvalue()
    message = refusal(read_paper_voc, site.paper(downloads))
    assert "VOCtrainval.tar: " in message and "evil.txt" in message
    assert not list((downloads / "unpacked").iterdir())
    assert not list(downloads.parent.rglob("evil*"))


def test_an_archive_of_another_data_set_is_refused(site, downloads):
    site.files["/voc/VOCtrainval.tar"] = paper_site.tar({"VOCdevkit/README": b"VOC 2007"}, "w")
    message = refusal(read_paper_voc, site.paper(downloads))
    assert f"{downloads / 'unpacked/VOCtrainval-'}" in message
    assert ": no JPEGImages/ among the unpacked files; remove" in message


def test_archives_with_the_same_name_and_another_digest_are_unpacked_separately(site, downloads):
    read_paper_voc(site.paper(downloads))
    url = f"{site.url('/voc/VOCtrainval.tar')}#sha256={'0' * 64}"
    assert "sha256" in refusal(read_paper_voc, site.paper(downloads, voc_archive=url))


def test_pets_have_their_breeds_as_labels(site, downloads, tmp_path):
    paper = site.paper(downloads)
    manifest = read_paper_pets(paper, tmp_path / "masks")
    assert manifest.labels == ("Abyssinian", "english cocker spaniel", "pug", "Sphynx")
    assert manifest.classes == ("background", "animal")
    assert manifest.license == "CC BY-SA 4.0"
    assert [len(manifest.split(split)) for split in PETS] == list(PETS.values())
    assert [(row.image_id, row.label) for row in manifest.rows[:3]] == [
        ("Abyssinian_1", 0),
        ("english_cocker_spaniel_2", 1),
        ("pug_3", 2),
    ]
    assert not [name for name in files_below(downloads / "unpacked") if "._" in name]
    site.stop()
    assert read_paper_pets(paper, tmp_path / "masks") == manifest


def test_pets_in_place_need_no_network_and_stay_unchanged(site, downloads, contents, tmp_path):
    root = tmp_path / "pets"
    for name in ("images", "annotations"):
        extract(contents[f"/pets/{name}.tar.gz"], root)
    before = files_below(root)
    paper = site.paper(downloads, pets_root=str(root))
    site.stop()
    manifest = read_paper_pets(paper, tmp_path / "masks")
    assert len(manifest.rows) == sum(PETS.values())
    assert files_below(root) == before
    assert files_below(tmp_path / "masks") == {f"{row.image_id}.png" for row in manifest.rows}
