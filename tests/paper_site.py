"""Everything that the paper profile downloads, in small: archives, captions, checkpoints, a hub."""

import hashlib
import io
import json
import tarfile
from urllib.parse import unquote

import numpy as np
import timm
import torch
from loopback import Loopback
from PIL import Image
from safetensors.torch import save
from small_checkpoints import original_blip_shapes as layout
from small_checkpoints import share_text_weights as share

from stages.data.voc import COLOR_MAP
from stages.models.catr import Catr, CatrConfig

COUNTS = {"train": 10, "val": 6}
PETS = {"train": 12, "val": 8}
BREEDS = ("Abyssinian", "english_cocker_spaniel", "pug", "Sphynx")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = (
    *("a", "an", "the", "picture", "of", "this", "image", "shows", "dog", "cat", "bird", "boat", "car", "train", "on"),
    *("in", "grass", "water", "red", "blue", "near", "two"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VITS = ("test_vit.r160_in1k", "test_vit2.r160_in1k")


def png(pixels: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(pixels.astype(np.uint8), mode="P" if palette else None)
    if palette:
        image.putpalette(COLOR_MAP.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def jpg(rng: np.random.Generator, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, format="JPEG")
    return buffer.getvalue()


def tar(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def voc(rng: np.random.Generator) -> tuple[bytes, dict[str, str]]:
    """Return VOC 2012's archive, all images of different shapes, and one caption per image."""
    root = "VOCdevkit/VOC2012"
    files = {}
    captions = {}
    for split, count in COUNTS.items():
        ids = [f"2007_{'tv'.index(split[0])}{index:05d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            height = 70 + 3 * index
            width = 110 - 5 * index
            mask = np.zeros((height, width))
            mask[10:40, 10:50] = 1 + index % 20
            mask[40] = 255  # void
            mask[45:60, 20:70] = 1 + (index + 7) % 20
            files[f"{root}/JPEGImages/{image_id}.jpg"] = jpg(rng, height, width)
            files[f"{root}/SegmentationClass/{image_id}.png"] = png(mask, palette=True)
            captions[image_id] = " ".join(rng.choice(WORDS, 9))
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = "".join(f"{image_id}\n" for image_id in ids).encode()
    files[f"{root}/Annotations/{ids[0]}.xml"] = b"<annotation/>"  # the true archive has more than is needed
    return tar(files, "w"), captions | {"unlisted": "a picture of nothing"}


def pets(rng: np.random.Generator) -> tuple[bytes, bytes]:
    """Return Oxford-IIIT Pet's two archives."""
    images = {}
    annotations = {}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    number = 0
    for split, count in zip(lists, PETS.values(), strict=True):
        for index in range(count):
            number += 1
            breed = index % len(BREEDS)
            name = f"{BREEDS[breed]}_{number}"
            trimap = np.full((60, 80), 2)  # background
            trimap[20:50, 20:60] = 1  # pet
            trimap[19, 20:60] = 3  # border
            images[f"images/{name}.jpg"] = jpg(rng, 60, 80)
            annotations[f"annotations/trimaps/{name}.png"] = png(trimap)
            lists[split].append(f"{name} {breed + 1} 1 1\n")
    for split, lines in lists.items():
        annotations[f"annotations/{split}.txt"] = "".join(lines).encode()
    annotations["annotations/trimaps/._Abyssinian_1.png"] = b"a file of macOS, as in the true archive"
    return tar(images, "w:gz"), tar(annotations, "w:gz")


def vocabulary() -> bytes:
    """Return a `vocab.txt` with BERT's special tokens at the indices that BERT gives them."""
    head = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return "\n".join([*head, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS[1:], ""]).encode()


def words() -> int:
    """Return the size of the vocabulary."""
    return len(vocabulary().splitlines())


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def blip() -> bytes:
    """Return a checkpoint in the original BLIP's layout, of 2x2 patches of 16 pixels, with momentum copies."""
    shapes = layout(64, 1, 16, 4, 64, 1, 128, words() + 2, 48, 16, 5)
    weights = {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    return torch_bytes({"model": share(weights), "epoch": 19})


def catr() -> bytes:
    """Return a checkpoint in CATR's layout."""
    sizes = {"hidden": 32, "heads": 1, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 64, "inner": 32}
    model = Catr(CatrConfig(**sizes, vocabulary=words(), positions=40, blocks=(1, 1, 1, 1)))
    return torch_bytes({"model": model.state_dict(), "epoch": 29, "lr_scheduler": {"last_epoch": 29}})


def vit(name: str) -> bytes:
    return save(timm.create_model(name.split(".")[0], num_classes=1000).state_dict())


def hub(repositories: dict[str, dict[str, bytes]]):
    """Return a `fallback` for `Loopback` that responds like huggingface.co to what its client requests."""

    def respond(method: str, path: str):
        path = unquote(path)
        for name, files in repositories.items():
            if path.startswith(f"/api/models/{name}"):
                revision = path.removeprefix(f"/api/models/{name}").removeprefix("/revision/").split("/")[0]
                if revision not in ("", "main", COMMIT) and "/tree/" not in path:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                siblings = [{"rfilename": filename} for filename in sorted(files)]
                answer = {
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                if "/tree/" in path:
                    answer = [
                        {"type": "file", "path": filename, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                        for filename, body in sorted(files.items())
                    ]
                return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
            for filename, body in files.items():
                if path in (f"/{name}/resolve/{revision}/{filename}" for revision in (COMMIT, "main")):
                    tag = hashlib.sha256(body).hexdigest()
                    return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"}, body
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    return respond


class PaperSite(Loopback):
    """The server, and the params that make the paper profile use it."""

    def __init__(self):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        archive, captions = voc(rng)
        images, annotations = pets(rng)
        files = {
            "/voc/VOCtrainval.tar": archive,
            "/captions.json": json.dumps(captions).encode(),
            "/pets/images.tar.gz": images,
            "/pets/annotations.tar.gz": annotations,
            "/blip/model_base.pth": blip(),
            "/catr/weight.pth": catr(),
        }
        repositories = {f"timm/{name}": {"model.safetensors": vit(name), "config.json": b"{}"} for name in VITS}
        repositories["bert/words"] = {"vocab.txt": vocabulary(), "pytorch_model.bin": b"not needed"}
        super().__init__(files, fallback=hub(repositories))

    def remote(self, path: str) -> str:
        """Return the URL of a file with its hash and size."""
        content = self.files[path]
        return f"{self.url(path)}#sha256={hashlib.sha256(content).hexdigest()}&size={len(content)}"

    def params(self) -> dict[str, object]:
        """Return params for `Project.set`, with `__` for dots in keys."""
        return {
            "profile": "paper",
            "paper__voc_archive": self.remote("/voc/VOCtrainval.tar"),
            "paper__voc_images": dict(COUNTS),
            "paper__pets_archives": [self.remote(f"/pets/{name}.tar.gz") for name in ("images", "annotations")],
            "paper__pets_images": dict(PETS),
            "paper__captions": self.remote("/captions.json"),
            "paper__mirrors": {},
            "paper__backbone": VITS[0],
            "paper__blip": self.remote("/blip/model_base.pth"),
            "paper__catr": self.remote("/catr/weight.pth"),
            "paper__vocabulary": f"bert/words@{COMMIT}",
            "paper__classifier": {
                "backbone": f"{VITS[0]}@{COMMIT}",
                "float64": False,
                "lr": {"base": 1e-4, "high": 1e-2},
                "size": {"base": 64, "large": 80},
            },
            "paper__view": {"short_side_min": 64, "short_side_max": 75, "crop": 64},
            "paper__examples": {"class_token": 2, "captions": 2},
        }
