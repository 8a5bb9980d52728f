"""The paper profile's data: VOC and pets, downloaded or in place, and captions in whatever layout they come."""

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
from PIL import Image

from stages.core.stage import InputError
from stages.data import voc
from stages.data.captions import read_captions
from stages.data.images import read_mask
from stages.data.manifest import Problems
from stages.data.oxford_pets import read_pets
from stages.data.paper import read_paper_pets, read_paper_voc
from stages.data.voc_folder import read_folder
from stages.fetch import download
from stages.params.experiment import Paper
from stages.params.remote_file import RemoteFile
from stages.params.section import read_params

GIVEN = ROOT.parent / "shared/assignment/captions_v1.json"


def refusal(call, *asked):
    with pytest.raises(InputError) as caught:
        call(*asked)
    return str(caught.value)


# Captions


def told(tmp_path, held, raw=False):
    """Captions of a file that holds this, and the faults found in it."""
    path, faults = tmp_path / "captions.json", Problems()
    path.write_text(held if raw else json.dumps(held), encoding="utf-8")
    return read_captions(path, faults), faults.lines


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.x.jpg"}, {"id": 6, "file_name": "bare.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog"},
        {"id": 2, "image_id": 5, "caption": "two\ncats "},
        {"id": 3, "image_id": 7, "caption": "one dog"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filename": "a.jpg",
            "filepath": "val2014",
            "split": "test",
            "sentences": [{"raw": "a dog"}, {"raw": "one dog"}],
        },
        {"filename": "b.x.jpg", "split": "train", "sentences": [{"raw": " two  cats", "tokens": ["two", "cats"]}]},
        {"filename": "bare.jpg", "split": "train", "sentences": []},
    ],
}


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"a": "a dog", "b.x": "two  cats "}, {"a": ("a dog",), "b.x": ("two cats",)}),
        ({"a": ["a dog", "one dog"], "b.x": "two cats"}, {"a": ("a dog", "one dog"), "b.x": ("two cats",)}),
        (COCO, {"a": ("a dog", "one dog"), "b.x": ("two cats",), "bare": ()}),
        (KARPATHY, {"a": ("a dog", "one dog"), "b.x": ("two cats",), "bare": ()}),
        ({"images": "a caption of a file of that name"}, {"images": ("a caption of a file of that name",)}),
    ],
)
def test_captions_in_all_layouts(tmp_path, held, expected):
    assert told(tmp_path, held) == (expected, [])


def test_a_byte_order_mark_is_read_over(tmp_path):
    assert told(tmp_path, "\N{BYTE ORDER MARK}" + json.dumps({"a": "häuser"}), raw=True) == ({"a": ("häuser",)}, [])


@pytest.mark.skipif(not GIVEN.is_file(), reason="the given captions are not beside the project")
def test_the_given_captions():
    """All of VOC's 2913 segmented images have one each."""
    faults = Problems()
    captions = read_captions(GIVEN, faults)
    assert (len(captions), faults.lines) == (2913, [])
    assert {len(one) for one in captions.values()} == {1}
    assert captions["2007_000032"] == ("a pink airplane on the tarmac",)
    assert all(text == text.strip() and "\n" not in text for (text,) in captions.values())


def changed(layout, *place, **instead):
    """A copy of a layout with keys of one entry set, or left out where they are None."""
    layout = json.loads(json.dumps(layout))
    entry = layout
    for key in place:
        entry = entry[key]
    entry |= instead
    for key in [key for key, value in instead.items() if value is None]:
        del entry[key]
    return layout


@pytest.mark.parametrize(
    ("held", "fault"),
    [
        (changed(COCO, "images", 0, file_name=None), "neither COCO's nor Karpathy's layout: KeyError 'file_name'"),
        (changed(COCO, "images", 0, file_name=3), "neither COCO's nor Karpathy's layout: TypeError"),
        (changed(COCO, "annotations", 0, image_id=99), "neither COCO's nor Karpathy's layout: KeyError 99"),
        (changed(COCO, "annotations", 0, caption=None), "neither COCO's nor Karpathy's layout: KeyError 'caption'"),
        (changed(COCO, "annotations", 0, caption=3), "'a' holds [3, 'one dog']; expected a caption"),
        (changed(COCO, images=3), "neither COCO's nor Karpathy's layout: TypeError"),
        (changed(COCO, images={"7": "a.jpg"}), "neither COCO's nor Karpathy's layout: TypeError"),
        (changed(KARPATHY, "images", 1, sentences=None), "neither COCO's nor Karpathy's layout: KeyError 'sentences'"),
        (changed(KARPATHY, "images", 1, sentences=["two cats"]), "neither COCO's nor Karpathy's layout: TypeError"),
        (changed(KARPATHY, "images", 1, filename=None), "neither COCO's nor Karpathy's layout: KeyError 'filename'"),
        ({"images": ["a.jpg"]}, "neither COCO's nor Karpathy's layout: TypeError"),
        (changed(KARPATHY, "images", 1, sentences=[{"raw": " "}]), "'b.x' holds [' ']; expected a caption"),
        ({"a": ""}, "'a' holds ['']"),
        ({"a": None}, "'a' holds None"),
        ({"a": ["one", 2]}, "'a' holds ['one', 2]"),
        ({"a": {"raw": "one"}}, "'a' holds {'raw': 'one'}"),
        ([{"a": "one"}], "holds a list; expected {id: caption}"),
    ],
)
def test_malformed_captions_are_one_line_that_names_the_file(tmp_path, held, fault):
    _, faults = told(tmp_path, held)
    assert len(faults) == 1
    assert faults[0].startswith(f"{tmp_path / 'captions.json'}: ") and fault in faults[0]
    assert "\n" not in faults[0]


@pytest.mark.parametrize("raw", ["{", "[1,", "captions", ""])
def test_what_is_no_json_is_one_line(tmp_path, raw):
    captions, faults = told(tmp_path, raw, raw=True)
    assert captions == {}
    assert len(faults) == 1 and "captions.json: no JSON" in faults[0]


@pytest.mark.parametrize("name", ["dataset_coco.json", "annotations/captions_val2017.json"])
def test_a_folder_of_malformed_captions_is_refused(tmp_path, name):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    (tmp_path / name).write_text(json.dumps({"images": [{"id": 1, "split": "val"}], "annotations": []}))
    assert Path(name).name in refusal(read_folder, tmp_path)


# Downloaded, or in place


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
    """The data, and the section of params that says where they are."""

    def remote(self, path):
        content = self.files[path]
        return f"{self.url(path)}#sha256={hashlib.sha256(content).hexdigest()}&size={len(content)}"

    def paper(self, downloads, **changes):
        asked = {
            "downloads": downloads,
            "voc_archive": self.remote("/voc/VOCtrainval.tar"),
            "voc_images": dict(COUNTS),
            "pets_archives": [self.remote(f"/pets/{name}.tar.gz") for name in ("images", "annotations")],
            "pets_images": dict(PETS),
            "captions": self.remote("/captions.json"),
            "mirrors": {},
        }
        return Paper.model_validate(read_params(ROOT / "params.yaml")["paper"] | asked | changes)


@pytest.fixture
def site(contents, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    with Site(dict(contents)) as running:
        yield running


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


def unpacked(content, folder):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_voc_is_downloaded_once_and_only_what_is_wanted_is_unpacked(site, downloads, contents):
    manifest = read_paper_voc(site.paper(downloads))
    assert [len(manifest.split(split)) for split in COUNTS] == list(COUNTS.values())
    assert (manifest.classes, manifest.labels) == (voc.CLASSES, ())
    assert "Flickr" in manifest.license
    captions = json.loads(contents["/captions.json"])
    assert all(row.captions == (captions[row.image_id],) for row in manifest.rows)
    assert {(row.height, row.width) for row in manifest.split("val")} == {(70 + 3 * i, 110 - 5 * i) for i in range(6)}
    parts = {Path(name).parts[2] for name in below(next((downloads / "unpacked").glob("VOCtrainval-*")))}
    assert parts == {"JPEGImages", "SegmentationClass", "ImageSets"}  # Annotations/ is in the archive, too
    asked = len(site.requests)
    assert read_paper_voc(site.paper(downloads)) == manifest
    assert len(site.requests) == asked


def test_voc_in_place_asks_nobody(site, downloads, contents, tmp_path):
    root = unpacked(contents["/voc/VOCtrainval.tar"], tmp_path / "there") / "VOCdevkit/VOC2012"
    before, own = below(root), tmp_path / "mine.json"
    own.write_bytes(contents["/captions.json"])
    manifest = read_paper_voc(site.paper(downloads, voc_root=str(root), captions=str(own)))
    assert manifest.source == str(root)
    assert all(Path(row.image).is_relative_to(root) and row.captions for row in manifest.rows)
    assert not site.requests
    assert not downloads.exists()
    assert below(root) == before


def test_no_captions_are_fine_and_asked_of_nobody(site, downloads):
    manifest = read_paper_voc(site.paper(downloads, captions=None))
    assert not any(row.captions for row in manifest.rows)
    assert site.count("/captions.json") == 0


@pytest.mark.parametrize("part", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_a_voc_root_that_is_none_is_named(site, downloads, tmp_path, part):
    for name in {"JPEGImages", "SegmentationClass", "ImageSets"} - {part}:
        (tmp_path / "voc" / name).mkdir(parents=True)
    fault = refusal(read_paper_voc, site.paper(downloads, voc_root=str(tmp_path / "voc"), captions=None))
    assert fault == (
        f"paper.voc_root = '{tmp_path / 'voc'}': no {part}/ there; the unpacked data set, or null to download it"
    )


def test_a_pets_root_that_is_none_is_named(site, downloads, tmp_path):
    (tmp_path / "images").mkdir()
    fault = refusal(read_paper_pets, site.paper(downloads, pets_root=str(tmp_path)), tmp_path / "masks")
    assert f"paper.pets_root = '{tmp_path}': no annotations/ there" in fault


def test_a_captions_file_that_is_not_there_is_named(site, downloads):
    fault = refusal(read_paper_voc, site.paper(downloads, captions="mine.json"))
    assert fault == "paper.captions = 'mine.json': no such file; a JSON of captions, its address, or null"
    assert not site.requests  # before anything is downloaded


def test_other_numbers_of_images_are_told_at_once(site, downloads):
    fault = refusal(read_paper_voc, site.paper(downloads, voc_images={"train": 1464, "val": 1449}))
    assert f"train.txt: {COUNTS['train']} images; expected 1464" in fault
    assert f"val.txt: {COUNTS['val']} images; expected 1449" in fault
    assert "2 faults, nothing written" in fault


def test_images_without_a_caption_are_named(site, downloads, contents):
    captions = json.loads(contents["/captions.json"])
    lost = sorted(captions)[:2]
    site.files["/captions.json"] = json.dumps({key: one for key, one in captions.items() if key not in lost}).encode()
    assert f"captions.json: no caption for {', '.join(lost)}" in refusal(read_paper_voc, site.paper(downloads))


def test_images_with_no_captions_among_theirs_are_named(site, downloads, contents):
    captions = json.loads(contents["/captions.json"])
    lost = min(captions)
    site.files["/captions.json"] = json.dumps(captions | {lost: []}).encode()
    assert f"no caption for {lost}" in refusal(read_paper_voc, site.paper(downloads))


@pytest.mark.parametrize("path", ["/voc/VOCtrainval.tar", "/captions.json", "/pets/images.tar.gz"])
def test_without_a_network_one_line_tells_what_to_put_where(site, downloads, contents, tmp_path, path):
    paper = site.paper(downloads)

    def call():
        return read_paper_pets(paper, tmp_path / "masks") if "pets" in path else read_paper_voc(paper)

    if path.startswith("/voc"):
        download.download_file(RemoteFile.parse(paper.captions), downloads)
    site.stop()
    fault, name = refusal(call), Path(path).name
    assert "\n" not in fault
    assert f"{name} could not be downloaded ({site.url(path)}: Connection refused" in fault
    assert f"sha256 {hashlib.sha256(contents[path]).hexdigest()}, {len(contents[path])} bytes" in fault
    assert fault.endswith(f"put it at {downloads / name}")
    for other, content in contents.items():
        (downloads / Path(other).name).write_bytes(content)
    assert len(call().rows) == sum((PETS if "pets" in path else COUNTS).values())


def test_a_mirror_stands_in(site, downloads, contents):
    site.files["/elsewhere/VOCtrainval.tar"] = contents["/voc/VOCtrainval.tar"]
    paper = site.paper(downloads, mirrors={site.url("/voc/"): site.url("/elsewhere/")})
    del site.files["/voc/VOCtrainval.tar"]
    assert len(read_paper_voc(paper).rows) == sum(COUNTS.values())


def spoilt(content, *members, folder="VOCdevkit/VOC2012"):
    """An archive with more members, put where its own would be."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as before, tarfile.open(fileobj=buffer, mode="w") as after:
        for member in before:
            after.addfile(member, before.extractfile(member))
        for name, link in members:
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.type, member.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            after.addfile(member, io.BytesIO(b""))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "folder", "fault"),
    [
        (("../../../evil.txt", None), "VOCdevkit", "'VOCdevkit/../../../evil.txt' lies outside the folder"),
        (("/tmp/evil.txt", None), "", "'/tmp/evil.txt' lies outside the folder"),
        (("JPEGImages/evil.jpg", "/etc/passwd"), "VOCdevkit/VOC2012", "evil.jpg' is a link"),
        (("Annotations/evil.xml", "/etc/passwd"), "VOCdevkit/VOC2012", "evil.xml' is a link"),  # not wanted
    ],
)
def test_an_archive_that_means_harm_is_refused_by_its_members_name(site, downloads, contents, member, folder, fault):
    site.files["/voc/VOCtrainval.tar"] = spoilt(contents["/voc/VOCtrainval.tar"], member, folder=folder)
    found = refusal(read_paper_voc, site.paper(downloads))
    assert "VOCtrainval.tar: " in found and fault in found
    assert not list((downloads / "unpacked").iterdir())
    assert not list(downloads.parent.rglob("evil*"))


def test_an_archive_of_something_else_is_named(site, downloads, contents):
    site.files["/voc/VOCtrainval.tar"] = paper_site.tar({"VOCdevkit/README": b"VOC 2007"}, "w")
    fault = refusal(read_paper_voc, site.paper(downloads))
    assert f"{downloads / 'unpacked/VOCtrainval-'}" in fault
    assert ": no JPEGImages/ in what was unpacked; remove it" in fault


def test_another_archive_of_the_same_name_is_not_taken_for_what_was_unpacked(site, downloads):
    read_paper_voc(site.paper(downloads))
    other = f"{site.url('/voc/VOCtrainval.tar')}#sha256={'0' * 64}"
    assert "sha256" in refusal(read_paper_voc, site.paper(downloads, voc_archive=other))


# Pets


def test_pets_labels_are_breeds_in_the_order_of_their_numbers(site, downloads, tmp_path):
    manifest = read_paper_pets(site.paper(downloads), tmp_path / "masks")
    assert manifest.labels == ("Abyssinian", "english cocker spaniel", "pug", "Sphynx")
    assert manifest.classes == ("background", "animal")
    assert manifest.license == "CC BY-SA 4.0"
    assert [len(manifest.split(split)) for split in PETS] == list(PETS.values())
    assert {(row.image_id, row.label) for row in manifest.rows[:3]} == {
        ("Abyssinian_1", 0),
        ("english_cocker_spaniel_2", 1),
        ("pug_3", 2),
    }
    assert not [name for name in below(downloads / "unpacked") if "._" in name]  # a Mac's, in the archive
    asked = len(site.requests)
    assert read_paper_pets(site.paper(downloads), tmp_path / "masks") == manifest
    assert len(site.requests) == asked


def test_pets_in_place_ask_nobody_and_stay_as_they_are(site, downloads, contents, tmp_path):
    root = tmp_path / "pets"
    for name in ("images", "annotations"):
        unpacked(contents[f"/pets/{name}.tar.gz"], root)
    before = below(root)
    manifest = read_paper_pets(site.paper(downloads, pets_root=str(root)), tmp_path / "masks")
    assert len(manifest.rows) == sum(PETS.values())
    assert not site.requests
    assert below(root) == before
    assert below(tmp_path / "masks") == {f"{row.image_id}.png" for row in manifest.rows}


@pytest.fixture
def pets(tmp_path):
    """Three pictures of two breeds by hand, the middle one with all that a trimap may hold."""
    trimap = np.array([[1, 2, 3], [3, 1, 2]])
    for folder in ("images", "annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("great_dane_1", "Bengal_2", "Bengal_12"):
        Image.new("RGB", (3, 2)).save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(trimap.astype(np.uint8)).save(tmp_path / f"annotations/trimaps/{name}.png")
    (tmp_path / "annotations/trainval.txt").write_text("#Image CLASS-ID SPECIES\ngreat_dane_1 2 2 1\nBengal_2 1 1 1\n")
    (tmp_path / "annotations/test.txt").write_text("Bengal_12 1 1 1\n\n")
    return tmp_path


def read_all(root, **expected):
    return read_pets(root / "images", root / "annotations", root / "masks", {"train": 2, "val": 1} | expected)


def test_pets_by_hand(pets):
    manifest = read_all(pets)
    assert manifest.labels == ("Bengal", "great dane")
    assert [(row.image_id, row.split, row.label) for row in manifest.rows] == [
        ("great_dane_1", "train", 1),
        ("Bengal_2", "train", 0),
        ("Bengal_12", "val", 0),
    ]
    assert read_mask(Path(manifest.rows[1].mask)).tolist() == [[1, 0, 255], [255, 1, 0]]
    with Image.open(manifest.rows[1].mask) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # VOC's color of class 1


def test_all_that_is_wrong_with_pets_is_told_at_once(pets):
    (pets / "annotations/trimaps/great_dane_1.png").unlink()
    (pets / "annotations/trimaps/Bengal_12.png").write_bytes(b"no picture")
    (pets / "images/Bengal_2.jpg").unlink()
    (pets / "annotations/test.txt").write_text("Bengal_12 1 1 1\nBengal_13\n")
    fault = refusal(lambda: read_all(pets, train=3680, val=3669))
    for line in (
        "annotations/trainval.txt: 2 images; expected 3680",
        "annotations/test.txt: 1 images; expected 3669",
        "annotations/test.txt: 'Bengal_13' is no line of a name and a class",
        "annotations/trimaps/great_dane_1.png: missing",
        "annotations/trimaps/Bengal_12.png: cannot identify image file",
        "images/Bengal_2.jpg: missing",
    ):
        assert f"{pets}/{line}" in fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("Bengal_12 one", "'Bengal_12 one' is no line of a name and a class"),
        ("Bengal_12 0", "'Bengal_12 0' is no line of a name and a class"),
        ("Bengal_12 -1", "'Bengal_12 -1' is no line of a name and a class"),
        ("Bengal_12 4", "annotations: classes [1, 2, 4]; expected 1 to 3"),
        ("Bengal_2 1", "Bengal_2: duplicate id, listed 2 times"),
        ("", "val: empty split"),
        ("Bengal_12 ²", "is no line of a name and a class"),
        ("Bengal_12 2", "great dane"),
    ],
)
def test_lists_that_are_wrong_are_named(pets, line, fault):
    (pets / "annotations/test.txt").write_text(f"{line}\n", encoding="utf-8")
    assert fault in refusal(read_all, pets)


def test_a_list_that_is_no_text_is_named(pets):
    (pets / "annotations/test.txt").write_bytes(b"\xff\xfe\x00")
    assert "test.txt: no UTF-8" in refusal(read_all, pets)


def test_missing_lists_are_named(pets):
    (pets / "annotations/test.txt").unlink()
    fault = refusal(read_all, pets)
    assert f"{pets}/annotations/test.txt: missing" in fault
