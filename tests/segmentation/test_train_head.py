"""Extraction and head training follow the protocol."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_mask
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from stages.core.stage import InputError
from stages.data.images import read_image, read_mask
from stages.data.views import crop_image, crop_mask
from stages.data.voc_folder import read_folder
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.models import vit
from stages.params.compute import Compute
from stages.params.profiles import ViewParams
from stages.params.segmentation import Head
from stages.segmentation import train_head
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.extract import batches_of, check_sizes, extract, train_views, val_views
from stages.segmentation.heads import build_head
from stages.segmentation.training import evaluate, pixel_loss, train, train_epoch, upsample

VIEW = ViewParams(short_side_min=24, short_side_max=28, crop=24)
CLASSES = 3
ALONE = Compute(precision="float32", compile=False, workers=0)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit.Backbone(vit.build(vit.Architecture(side=24, dim=12, depth=2, heads=3, stem=(4, 4, 4, 4))))


@pytest.fixture
def manifest(voc_folder):
    return read_folder(voc_folder)


def table(path, backbone, views, **settings):
    made_with = FeatureMetadata("tiny", "w", "t", dim=backbone.dim, heads=3, patch="8x8", manifest="m")
    shards = Shards(path, len(views), vars(made_with), waiting=path.parent / "waiting", **settings.pop("shards", {}))
    extract(backbone, views, shards, made_with, ALONE, **settings)
    shards.commit()
    return FeatureTable(path)


def all_rows(features):
    return [row for group in range(features.num_groups) for row in features.read_group(group)]


def test_every_view_once_with_the_tokens_of_its_pixels(tmp_path, backbone, manifest):
    views = train_views(manifest.split("train"), 3, VIEW, seed=5)
    rows = all_rows(table(tmp_path / "t", backbone, views, batch=2))
    assert [(row.image_id, row.view_index) for row in rows] == [(i, v) for v in range(3) for i in "ab"]
    for row in rows:
        source = next(one for one in manifest.rows if one.image_id == row.image_id)
        pixels = torch.from_numpy(crop_image(read_image(Path(source.image)), row.view).transpose(2, 0, 1).copy())
        expected = backbone(pixels[None]).patches[0]
        torch.testing.assert_close(row.tokens.float(), expected, atol=2e-3, rtol=2e-3)


def test_views_hang_on_image_and_index_alone(manifest):
    rows = manifest.split("train")
    every = train_views(rows, 3, VIEW, seed=5)
    assert train_views(rows[1:], 2, VIEW, seed=5) == [one for one in every if one[0].image_id == "b" and one[1] < 2]
    assert len({view for _, _, view in every}) == len(every)
    assert train_views(rows, 3, VIEW, seed=6) != every


def test_val_images_keep_their_size(tmp_path, backbone, manifest):
    (row,) = all_rows(table(tmp_path / "t", backbone, val_views(manifest.split("val"))))
    assert row.tokens.shape == (33 // 8, 47 // 8, 12)
    assert (row.view.crop_height, row.view.crop_width) == (33, 47)


def test_batches_hold_one_shape_and_one_view_index(manifest):
    rows = [replace(manifest.rows[0], height=h, width=w) for h, w in [(9, 9), (9, 9), (9, 9), (8, 9), (9, 8)]]
    views = val_views(tuple(rows))
    assert [len(batch) for batch in batches_of(views, range(5), 2)] == [1, 1, 2, 1]
    training = train_views(manifest.split("train"), 2, VIEW, seed=0)
    assert [len(batch) for batch in batches_of(training, range(4), 32)] == [2, 2]


def test_large_views_come_in_small_batches(manifest):
    rows = tuple(replace(manifest.rows[0], height=1024, width=1024) for _ in range(5))
    assert [len(batch) for batch in batches_of(val_views(rows), range(5), 32)] == [2, 2, 1]


def test_views_smaller_than_a_patch_are_named(backbone, manifest):
    check_sizes(manifest, backbone, 24, "folder")
    with pytest.raises(InputError, match="folder.view.crop = 6: smaller than one 8x8 patch"):
        check_sizes(manifest, backbone, 6, "folder")
    small = replace(manifest, rows=(replace(manifest.rows[2], height=7),))
    with pytest.raises(InputError, match="c.jpg: 47x7 pixels, smaller than one 8x8 patch"):
        check_sizes(small, backbone, 24, "folder")


def masks_of(manifest):
    return {row.image_id: Path(row.mask) for row in manifest.rows}


def test_epoch_e_sees_view_e_mod_v_with_its_own_masks(tmp_path, backbone, manifest):
    features = table(tmp_path / "t", backbone, train_views(manifest.split("train"), 2, VIEW, seed=1))
    views = TrainViews(features, masks_of(manifest), views=2, epochs=5)
    tokens, masks = views.epoch(3)
    expected = [row for row in all_rows(features) if row.view_index == 1]
    assert torch.equal(tokens, torch.stack([row.tokens for row in expected]))
    for row, mask in zip(expected, masks, strict=True):
        assert np.array_equal(mask, crop_mask(read_mask(masks_of(manifest)[row.image_id]), row.view))
    assert views.epoch(1)[0] is tokens  # kept, as epoch 3 asks for the same view
    assert not torch.equal(views.epoch(0)[0], tokens)


def test_loss_and_gradient_are_cross_entropys_over_pixels_that_are_not_void():
    masks = torch.randint(0, CLASSES, (2, 12, 15), dtype=torch.uint8)
    masks[:, :4] = 255
    logits = (torch.randn(2, 3, 4, CLASSES) * 30).double().requires_grad_()
    loss = pixel_loss(logits, masks)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    stretched = F.interpolate(logits.permute(0, 3, 1, 2), size=(12, 15), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(stretched, masks.long(), ignore_index=255)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, logits)[0])


def test_nothing_but_void_costs_nothing():
    logits = torch.randn(1, 2, 2, CLASSES, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (7, 5)), ((10, 10), (80, 80)), ((6, 4), (3, 9)), ((1, 1), (4, 4))])
def test_stretching_is_bilinear_interpolation(grid, size):
    logits = torch.randn(2, *grid, CLASSES)
    with torch.inference_mode():
        upsample(logits, size)  # what prediction keeps must not spoil training
    logits.requires_grad_()
    expected = F.interpolate(logits.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(logits, size), expected.permute(0, 2, 3, 1))
    upsample(logits, size).sum().backward()


def test_stretched_logits_keep_their_corners_in_place():
    logits = torch.zeros(1, 2, 2, 1)
    logits[0, 0, 1] = 4.0
    assert upsample(logits, (4, 4))[0, :, :, 0].argmax() == 3


def test_the_last_partial_batch_is_dropped():
    head = build_head(kind="linear", dim=4, classes=CLASSES, heads=1, kernel=None, shared_qk=None)
    steps = []
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    tokens, masks = torch.randn(11, 2, 2, 4).half(), torch.zeros(11, 4, 4, dtype=torch.uint8)
    train_epoch(head, optimizer, tokens, masks, 4, torch.Generator().manual_seed(0))
    assert len(steps) == 2


def test_rate_falls_linearly_and_a_run_repeats_itself(tmp_path, backbone, manifest):
    training = table(tmp_path / "t", backbone, train_views(manifest.split("train"), 2, VIEW, seed=1))
    val = ValImages(table(tmp_path / "v", backbone, val_views(manifest.split("val"))), masks_of(manifest))

    task = SimpleNamespace(views=2, epochs=4, batch_size=2, lr=0.1, weight_decay=0.001)
    rates = []

    def once():
        torch.manual_seed(3)
        head = build_head(kind="linear", dim=12, classes=CLASSES, heads=3, kernel=None, shared_qk=None)
        views = TrainViews(training, masks_of(manifest), views=2, epochs=4)
        return train(head, views, val, CLASSES, task, 3, "test")

    real = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), real(self, *a))[1]
        )
        first = once()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    history, matrices = once()
    assert history == first[0]
    assert np.array_equal(matrices, first[1])
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kernel", "batch", "views", "told"),
    [
        (5, 2, 1, "heads.mine.kernel = 5: at most 3, the side of the smallest grid"),
        (3, 3, 1, "segmentation.batch_size = 3: at most 2, the training images"),
        (3, 2, 2, "segmentation.views = 2: .* holds 1"),
    ],
)
def test_what_cannot_fit_is_named_before_training(tmp_path, backbone, manifest, kernel, batch, views, told):
    training = table(tmp_path / "t", backbone, train_views(manifest.split("train"), 1, VIEW, seed=1))
    asked, task = Head(kind="convolutional", kernel=kernel), SimpleNamespace(batch_size=batch, views=views)
    with pytest.raises(InputError, match=told):
        train_head._check_fits("mine", asked, task, training, training)


def test_a_diverged_run_is_named_when_it_happens(tmp_path, backbone, manifest, monkeypatch):
    training = table(tmp_path / "t", backbone, train_views(manifest.split("train"), 1, VIEW, seed=1))
    val = ValImages(table(tmp_path / "v", backbone, val_views(manifest.split("val"))), masks_of(manifest))
    task = SimpleNamespace(views=1, epochs=2, batch_size=2, lr=0.1, weight_decay=0.0)
    head = build_head(kind="linear", dim=12, classes=CLASSES, heads=3, kernel=None, shared_qk=None)
    torch.nn.init.constant_(head.classify.weight, float("inf"))
    with pytest.raises(InputError, match="mine: training diverged in epoch 1"):
        train(head, TrainViews(training, masks_of(manifest), views=1, epochs=2), val, CLASSES, task, 0, "mine")


def test_weights_are_the_same_bytes_every_time_and_build_their_head_again(tmp_path):
    config = {"dim": 12, "classes": CLASSES, "heads": 3, "kind": "transformer", "kernel": None, "shared_qk": True}
    head = build_head(**config)
    for count in range(6):
        train_head.write_weights(tmp_path / str(count), head, config, ("a", "b", "c"))
    assert len({(tmp_path / str(count)).read_bytes() for count in range(6)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        kept = json.loads(file.metadata()["head"])
    again = build_head(**kept["config"])
    again.load_state_dict(load_file(tmp_path / "0"))
    patches = torch.randn(1, 4, 4, 12)
    assert torch.equal(again(patches), head(patches))
    assert kept["classes"] == ["a", "b", "c"]


def test_evaluation_predicts_at_the_masks_size(tmp_path, backbone, manifest):
    write_mask(Path(manifest.rows[2].mask), np.full((33, 47), 1))
    val = ValImages(table(tmp_path / "v", backbone, val_views(manifest.split("val"))), masks_of(manifest))
    head = build_head(kind="linear", dim=12, classes=CLASSES, heads=3, kernel=None, shared_qk=None)
    torch.nn.init.zeros_(head.classify.weight)
    head.classify.bias.data = torch.tensor([0.0, 0.0, 5.0])
    matrices = evaluate(head, val, CLASSES)
    assert matrices.shape == (1, CLASSES, CLASSES)
    assert matrices[0, 1, 2] == 33 * 47 == matrices.sum()


def test_images_of_any_size_share_a_table(tmp_path, backbone, voc_folder):
    Image.new("RGB", (50, 90)).save(voc_folder / "JPEGImages/c.jpg")
    write_mask(voc_folder / "SegmentationClass/c.png", np.zeros((90, 50)))
    rows = all_rows(table(tmp_path / "v", backbone, val_views(read_folder(voc_folder).rows)))
    assert {row.image_id: tuple(row.tokens.shape[:2]) for row in rows} == {"a": (3, 4), "b": (5, 3), "c": (11, 6)}
