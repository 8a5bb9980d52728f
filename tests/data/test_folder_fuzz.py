"""Generated folders: whatever their files hold, the `data` stage writes a manifest or refuses them in short lines."""

import io
import json
import os
import warnings
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.core.stage import InputError
from stages.data import __main__ as data_stage
from stages.data import manifest as manifests
from stages.data.voc_folder import FolderSource
from stages.params.experiment import load_experiment

FUZZ = settings(
    max_examples=60,
    deadline=timedelta(seconds=10),
    derandomize=True,  # the same examples in every run
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
TEXT_FILES = [
    "ImageSets/Segmentation/train.txt",
    "ImageSets/Segmentation/val.txt",
    "classes.txt",
    "captions.json",
    "labels.csv",
    "license.txt",
]

image_ids = st.sampled_from(["a", "b", "c", "x", "", ".", "..", "../a", "/a", "a\\b", "a b", "\x1b[31m", "²", "\udc80"])
words = image_ids | st.text(max_size=20) | st.sampled_from(["9" * 5000, "y" * 140_000, '"', "\0", "\u2028", "\ud800"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
images = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 3) | json_values,
        "file_name": image_ids.map(lambda image_id: f"{image_id}.jpg") | json_values,
        "filename": image_ids.map(lambda image_id: f"{image_id}.jpg") | json_values,
        "split": st.sampled_from(["train", "restval", "val", "test"]) | json_values,
        "sentences": st.lists(st.fixed_dictionaries({"raw": words}) | json_values, max_size=3) | json_values,
    },
)
annotations = st.fixed_dictionaries({}, optional={"image_id": st.integers(0, 3) | json_values, "caption": json_values})
layouts = st.one_of(
    st.dictionaries(image_ids, words | st.lists(words, max_size=3)),
    st.fixed_dictionaries(
        {"images": st.lists(images, max_size=4)}, optional={"annotations": st.lists(annotations, max_size=4)}
    ),
    json_values,
)
json_texts = layouts.map(json.dumps) | layouts.map(lambda value: json.dumps(value, ensure_ascii=False))
tables = st.lists(st.lists(words, max_size=4).map(",".join), max_size=6).map(
    lambda rows: "\n".join(["image_id,label", *rows])
)
lists = st.lists(words, max_size=6).map("\n".join) | st.lists(image_ids, max_size=6).map("\r\n".join)
texts = json_texts | tables | lists | st.just("[" * 20_000) | st.just('{"a": ' * 20_000)
contents = (
    st.binary(max_size=200)
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | texts.map(lambda text: text.encode("utf-8-sig", "surrogatepass"))
    | texts.map(lambda text: text.encode("utf-16", "surrogatepass"))
)


def image_bytes(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@cache
def example_images() -> list[bytes]:
    """Images of many modes and formats, with orientations, whose bytes are damaged."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    modes = {"PNG": ["RGB", "L", "P", "1", "LA", "RGBA"], "TIFF": ["RGB", "P", "L", "LAB", "CMYK", "I", "F"]}
    files = [image_bytes(pixels.convert(mode), name) for name, of_name in modes.items() for mode in of_name]
    files += [image_bytes(pixels, name, exif=exif) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [image_bytes(pixels, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")]
    files += [image_bytes(pixels, name) for name in ("BMP", "GIF", "PPM", "ICO")]
    return files


# Written as bytes at random positions: sizes, counts and offsets in headers become wrong.
damages = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=4)), max_size=4)


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(example_images())))
    for position, replacement in draw(damages):
        start = position % len(content)
        content[start : start + len(replacement)] = replacement
    length = draw(st.integers(0, len(content)) | st.just(len(content)))
    return bytes(content[:length])


@pytest.fixture(scope="module")
def folder_profile():
    return load_experiment(Path(__file__).parents[2] / "params.yaml").model_copy(update={"profile": "folder"})


@pytest.fixture
def read_changed(folder_profile, voc_folder, tmp_path, monkeypatch):
    """Run the stage on `voc_folder` with some files replaced; return the problems, [] if it succeeds."""
    source = FolderSource(folder_profile.folder.model_copy(update={"path": voc_folder}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_stage, "load_experiment", lambda: folder_profile)
    monkeypatch.setattr(data_stage, "build_source", lambda experiment: source)

    def read(files: dict[str, bytes]) -> list[str]:
        originals = {path: path.read_bytes() for path in map(voc_folder.joinpath, files) if path.is_file()}
        for name, content in files.items():
            (voc_folder / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
                data_stage.main()
        except InputError as error:
            heading, *lines = str(error).split("\n  ")
            assert heading.isprintable()
            return lines
        finally:
            for name in files:
                (voc_folder / name).unlink()
            for path, content in originals.items():
                path.write_bytes(content)
        written = manifests.read_manifest(manifests.MANIFEST)
        assert written.split("train")
        assert written.split("val")
        return []

    return read


@pytest.fixture
def read_captioned(read_changed, voc_folder):
    """Like `read_changed`, of a folder of captioned images."""
    (voc_folder / "JPEGImages").rename(voc_folder / "Images")
    (voc_folder / "annotations").mkdir()
    return read_changed


def check(lines: list[str]) -> None:
    for line in lines:
        assert line.isprintable() and len(line) < 1000, line


@FUZZ
@given(st.dictionaries(st.sampled_from(TEXT_FILES), contents, min_size=1, max_size=3))
def test_any_text_files_are_read_or_refused(read_changed, files):
    check(read_changed(files))


@FUZZ
@given(json_texts)
def test_any_captioned_folder_is_read_or_refused(read_captioned, text):
    check(read_captioned({"dataset.json": text.encode("utf-8", "surrogatepass")}))


@FUZZ
@given(json_texts, json_texts)
def test_any_folder_of_coco_is_read_or_refused(read_captioned, train, val):
    files = {"annotations/captions_train.json": train, "annotations/captions_val.json": val}
    check(read_captioned({name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}))


@settings(FUZZ, max_examples=150)
@given(st.sampled_from(["JPEGImages/a.jpg", "SegmentationClass/c.png"]), damaged_images())
def test_any_image_is_read_or_refused(read_changed, name, content):
    check(read_changed({name: content}))


@pytest.mark.parametrize("name", ["JPEGImages/a.jpg", "SegmentationClass/a.png", *TEXT_FILES])
def test_any_kind_of_file_is_read_or_refused(voc_folder, folder_profile, name):
    path = voc_folder / name
    for kind in ("folder", "pipe", "device", "loop", "dangling"):
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"device": "/dev/zero", "loop": path.name, "dangling": "nowhere"}[kind])
        with pytest.raises(InputError) as caught:
            FolderSource(folder_profile.folder.model_copy(update={"path": voc_folder})).read()
        check(str(caught.value).split("\n  "))
        if kind == "folder":
            path.rmdir()
