"""Extraction of patch tokens and training of heads follow the protocol."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, write_mask
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_checkpoints import small_backbone
from torch.nn import functional as F

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data.images import read_image, read_mask
from stages.data.views import crop_image, crop_mask
from stages.data.voc_folder import read_folder
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureMetadata, FeatureTable
from stages.params.compute import Compute
from stages.params.experiment import load_experiment
from stages.params.profiles import ViewParams
from stages.params.segmentation import Head
from stages.segmentation import FEATURES, train_head
from stages.segmentation.cost import Cost, write_cost
from stages.segmentation.dataset import TrainViews, ValImages
from stages.segmentation.evaluation import Validation, evaluate
from stages.segmentation.extract import SegmentationJob, check_sizes, split_batches, train_views, val_views, view_keys
from stages.segmentation.heads import build_head
from stages.segmentation.iou import confusion, iou
from stages.segmentation.patch_features import patch_features
from stages.segmentation.pixel_loss import pixel_loss
from stages.segmentation.segmenter import Segmenter
from stages.segmentation.training import DivergedError, train_epoch
from stages.segmentation.upsampling import upsample

VIEW = ViewParams(short_side_min=24, short_side_max=28, crop=24)
CLASSES = 3
COMPUTE = Compute(precision="float32", compile=False, workers=0, live=False)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture
def manifest(voc_folder):
    return read_folder(voc_folder)


def extract_table(path, backbone, views, manifest_hash="m", **settings):
    metadata = FeatureMetadata("tiny", "w", "t", dim=backbone.dim, heads=3, patch="8x8", manifest=manifest_hash)
    shards = Shards(path, view_keys(views), vars(metadata), waiting=path.parent / "waiting")
    extract_shards(SegmentationJob(backbone, views, metadata, COMPUTE, **settings), shards, COMPUTE, "extract")
    shards.commit()
    return FeatureTable(path)


def all_rows(table):
    return [row for group in range(table.num_groups) for row in table.read_group(group)]


def linear_head(dim=12):
    return build_head("linear", {}, dim=dim, classes=CLASSES, attention_heads=3)


def test_each_view_is_extracted_once_with_the_tokens_of_its_pixels(tmp_path, backbone, manifest):
    views = train_views(manifest.split("train"), 3, VIEW, seed=5)
    rows = all_rows(extract_table(tmp_path / "t", backbone, views, batch_size=2))
    assert [(row.image_id, row.view_index) for row in rows] == [
        (image_id, view) for view in range(3) for image_id in "ab"
    ]
    images = {row.image_id: Path(row.image) for row in manifest.rows}
    for row in rows:
        pixels = torch.from_numpy(crop_image(read_image(images[row.image_id]), row.view).transpose(2, 0, 1).copy())
        expected = backbone(pixels[None]).patches[0]
        # Tokens are stored as float16, which rounds by up to 2^-11 of a value.
        torch.testing.assert_close(row.tokens.float(), expected, rtol=0, atol=1e-3 * expected.abs().max().item())


def test_views_depend_on_seed_image_and_index_only(manifest):
    rows = manifest.split("train")
    views = train_views(rows, 3, VIEW, seed=5)
    subset = [(row, index, view) for row, index, view in views if row.image_id == "b" and index < 2]
    assert train_views(rows[1:], 2, VIEW, seed=5) == subset
    assert len({view for _, _, view in views}) == len(views)
    assert train_views(rows, 3, VIEW, seed=6) != views


def test_val_images_keep_their_size(tmp_path, backbone, manifest):
    (row,) = all_rows(extract_table(tmp_path / "t", backbone, val_views(manifest.split("val"))))
    assert row.tokens.shape == (33 // 8, 47 // 8, 12)
    assert (row.view.crop_height, row.view.crop_width) == (33, 47)


def test_a_batch_has_one_shape_and_one_view_index(manifest):
    sizes = [(9, 9), (9, 9), (9, 9), (8, 9), (9, 8)]
    views = val_views(tuple(replace(manifest.rows[0], height=height, width=width) for height, width in sizes))
    assert [len(batch) for batch in split_batches(views, range(5), 2)] == [1, 1, 2, 1]
    views = train_views(manifest.split("train"), 2, VIEW, seed=0)
    assert [len(batch) for batch in split_batches(views, range(4), 32)] == [2, 2]


def test_a_batch_of_large_views_is_small(manifest):
    rows = tuple(replace(manifest.rows[0], height=1024, width=1024) for _ in range(5))
    assert [len(batch) for batch in split_batches(val_views(rows), range(5), 32)] == [2, 2, 1]


def test_views_smaller_than_a_patch_are_named(backbone, manifest):
    check_sizes(manifest, backbone, 24, "folder")
    with pytest.raises(InputError, match="folder.view.crop = 6: smaller than one 8x8 patch"):
        check_sizes(manifest, backbone, 6, "folder")
    small = replace(manifest, rows=(replace(manifest.rows[2], height=7),))
    with pytest.raises(InputError, match="c.jpg: 47x7 pixels, smaller than one 8x8 patch"):
        check_sizes(small, backbone, 24, "folder")


def mask_paths(manifest):
    return {row.image_id: Path(row.mask) for row in manifest.rows}


def test_views_have_equally_cut_masks_and_are_loaded_once(tmp_path, backbone, manifest):
    table = extract_table(tmp_path / "t", backbone, train_views(manifest.split("train"), 2, VIEW, seed=1))
    paths = mask_paths(manifest)
    views = TrainViews(table, paths, views=2, epochs=5)
    tokens, masks = views[1]
    expected = [row for row in all_rows(table) if row.view_index == 1]
    assert torch.equal(tokens, torch.stack([row.tokens for row in expected]))
    for row, mask in zip(expected, masks, strict=True):
        assert np.array_equal(mask, crop_mask(read_mask(paths[row.image_id]), row.view))
    assert views[1][0] is tokens  # cached, as epochs 1 and 3 use the same view
    assert not torch.equal(views[0][0], tokens)


# Loss and upsampling


def interpolate(logits, size):
    """The plain form: classes first, torch's own bilinear interpolation."""
    return F.interpolate(logits.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)


def test_pixel_loss_and_gradient_equal_cross_entropy():
    """In float64. Both sides grow by a factor of 4, so that the interpolation weights are exact: multiples of 1/8."""
    masks = torch.randint(0, CLASSES, (2, 12, 16), dtype=torch.uint8)
    masks[:, :4] = 255
    logits = (torch.randn(2, 3, 4, CLASSES) * 30).double().requires_grad_()
    loss = pixel_loss(logits, masks)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    expected = F.cross_entropy(interpolate(logits, (12, 16)), masks.long(), ignore_index=255)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_pixel_loss_is_the_same_in_chunks(monkeypatch):
    masks = torch.randint(0, CLASSES, (5, 12, 16), dtype=torch.uint8)
    logits = torch.randn(5, 3, 4, CLASSES, dtype=torch.float64, requires_grad=True)
    loss = pixel_loss(logits, masks)
    (gradient,) = torch.autograd.grad(loss, logits)
    monkeypatch.setattr("stages.segmentation.pixel_loss.MAX_BATCH_PIXELS", 2 * 12 * 16)
    loss_in_chunks = pixel_loss(logits, masks)
    torch.testing.assert_close(loss_in_chunks, loss)
    torch.testing.assert_close(torch.autograd.grad(loss_in_chunks, logits)[0], gradient)


def test_void_pixels_alone_have_loss_0():
    logits = torch.randn(1, 2, 2, CLASSES, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (7, 5)), ((10, 10), (80, 80)), ((6, 4), (3, 9)), ((1, 1), (4, 4))])
def test_upsampling_is_bilinear_interpolation(grid, size):
    logits = torch.randn(2, *grid, CLASSES)
    with torch.inference_mode():
        upsample(logits, size)  # weights that are cached in prediction must serve training too
    logits.requires_grad_()
    result = upsample(logits, size)
    expected = interpolate(logits, size).permute(0, 2, 3, 1)
    # A few products and sums in float32, whose epsilon is 1.2e-7.
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * logits.abs().max().item())
    result.sum().backward()


def test_upsampled_logits_keep_their_corners():
    logits = torch.zeros(1, 2, 2, 1)
    logits[0, 0, 1] = 4.0
    assert upsample(logits, (4, 4))[0, :, :, 0].argmax() == 3


# Training


def test_the_last_partial_batch_is_dropped():
    head = linear_head(dim=4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    tokens = torch.randn(11, 2, 2, 4).half()
    masks = torch.zeros(11, 4, 4, dtype=torch.uint8)
    train_epoch(head, optimizer, tokens, masks, 4, torch.Generator().manual_seed(0))
    assert len(steps) == 2


@pytest.fixture
def tables(tmp_path, backbone, manifest):
    """Two views of two training images, and one validation image."""
    return (
        extract_table(tmp_path / "train", backbone, train_views(manifest.split("train"), 2, VIEW, seed=1)),
        extract_table(tmp_path / "val", backbone, val_views(manifest.split("val"))),
    )


def train_linear(tables, manifest, epochs, lr=0.1, head=None):
    train_table, val_table = tables
    torch.manual_seed(3)
    head = head or linear_head()
    views = TrainViews(train_table, mask_paths(manifest), views=2, epochs=epochs)
    validation = Validation(head, ValImages(val_table, mask_paths(manifest)), CLASSES)
    settings = {"epochs": epochs, "batch_size": 2, "lr": lr, "seed": 3, "name": "mine"}
    history = train_head.train_head(head, views, **settings, validate=validation)
    return history, validation.matrices


def test_the_learning_rate_falls_linearly_per_epoch(tables, manifest, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def recording_step(optimizer, *args):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording_step)
    train_linear(tables, manifest, epochs=4)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_training_is_repeatable(tables, manifest):
    first_history, first_matrices = train_linear(tables, manifest, epochs=4)
    history, matrices = train_linear(tables, manifest, epochs=4)
    assert history == first_history
    assert np.array_equal(matrices, first_matrices)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]


def test_arrays_in_memory_give_the_head_and_the_masks_of_the_stage(tmp_path, backbone, manifest, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifests.write_manifest(manifest, manifests.MANIFEST)
    views = train_views(manifest.split("train"), 1, VIEW, seed=1)
    for split, split_views in {"train": views, "val": val_views(manifest.split("val"))}.items():
        extract_table(FEATURES / split, backbone, split_views, manifests.manifest_hash())
    write_cost(FEATURES, Cost(parameters=1, flops=2, tokens=3))
    experiment = load_experiment(ROOT / "params.yaml")
    settings = {"views": 1, "epochs": 3, "batch_size": 2}
    changes = {
        "embedded": experiment.embedded.model_copy(update={"backbone": "tiny"}),
        "segmentation": experiment.segmentation.model_copy(update=settings),
    }
    run = train_head.run_head(experiment.model_copy(update=changes), "convolutional", 1)

    images = np.stack([crop_image(read_image(Path(row.image)), view) for row, _, view in views])
    masks = np.stack([crop_mask(read_mask(Path(row.mask)), view) for row, _, view in views])
    seed = experiment.seed_for("segmentation/convolutional", 1)
    torch.manual_seed(seed)
    head = build_head("convolutional", {"kernel": 3}, dim=12, classes=len(manifest.classes), attention_heads=3)
    features = patch_features(backbone, images)
    history = train_head.train_head(head, [(features, masks)], epochs=3, batch_size=2, seed=seed)
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in run.history]
    weights = load_file(run.artifacts["weights"])
    for name, weight in head.state_dict().items():
        assert torch.equal(weight, weights[name])
    (predictions,) = pq.read_table(run.artifacts["predictions"]).to_pylist()
    (row,) = manifest.split("val")
    (mask,) = Segmenter(backbone, head).predict(np.asarray(read_image(Path(row.image)))[None])
    assert mask.tobytes() == predictions["mask"]
    miou = iou(confusion(read_mask(Path(row.mask))[None], mask[None], len(manifest.classes)).sum(0)).mean
    assert miou == run.metrics["miou"]


@pytest.mark.parametrize(
    ("images", "problem"), [(3, "features of 2 images, but masks of 3"), (2, "batch_size = 8: at")]
)
def test_arrays_that_do_not_fit_are_named(images, problem):
    features = np.zeros((2, 3, 3, 12), np.float16)
    masks = np.zeros((images, 24, 24), np.uint8)
    with pytest.raises(ValueError, match=problem):
        train_head.train_head(linear_head(), [(features, masks)], epochs=1)


def test_divergence_is_reported_with_its_epoch(tables, manifest):
    head = linear_head()
    torch.nn.init.constant_(head.classify.weight, float("inf"))
    with pytest.raises(DivergedError, match="mine: training diverged in epoch 1"):
        train_linear(tables, manifest, epochs=2, head=head)


@pytest.mark.parametrize(
    ("kernel", "batch_size", "views", "message"),
    [
        (5, 2, 2, "segmentation.heads.mine: needs 5x5 patch tokens; the smallest grid has a side of 3"),
        (3, 3, 2, "segmentation.batch_size = 3: at most 2, the training images"),
        (3, 2, 1, "segmentation.views = 1: .* holds 2"),
    ],
)
def test_params_that_do_not_fit_the_tables_are_named_before_training(tables, kernel, batch_size, views, message):
    head = build_head("convolutional", {"kernel": kernel}, dim=12, classes=CLASSES, attention_heads=3)
    task = SimpleNamespace(batch_size=batch_size, views=views)
    with pytest.raises(InputError, match=message):
        train_head.check_tables("mine", head, task, *tables)


def test_an_error_in_any_head_is_found_before_data_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a manifest
    heads = {"mine": Head(kind="linear"), "other": Head.model_construct(kind="convolutional", kernel=0)}
    experiment = SimpleNamespace(segmentation=SimpleNamespace(heads=heads))
    with pytest.raises(InputError, match="segmentation.heads.other.kernel = 0"):
        train_head.run_head(experiment, "mine", 1)


def test_a_weights_file_rebuilds_its_head_and_has_the_same_bytes_every_time(tmp_path):
    options = {"shared_qk": True}
    config = {"kind": "transformer", "options": options, "dim": 12, "classes": CLASSES, "attention_heads": 3}
    head = build_head(**config)
    for number in range(6):
        train_head.write_head(tmp_path / str(number), head, config, ("a", "b", "c"))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(6)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        metadata = json.loads(file.metadata()["head"])
    rebuilt = build_head(**metadata["config"])
    rebuilt.load_state_dict(load_file(tmp_path / "0"))
    patches = torch.randn(1, 4, 4, 12)
    assert torch.equal(rebuilt(patches), head(patches))
    assert metadata["classes"] == ["a", "b", "c"]


def test_evaluation_predicts_at_the_size_of_the_masks(tables, manifest):
    write_mask(Path(manifest.rows[2].mask), np.full((33, 47), 1))
    val = ValImages(tables[1], mask_paths(manifest))
    head = linear_head()
    torch.nn.init.zeros_(head.classify.weight)
    head.classify.bias.data = torch.tensor([0.0, 0.0, 5.0])
    matrices = evaluate(head, val, CLASSES)
    assert matrices.shape == (1, CLASSES, CLASSES)
    assert matrices[0, 1, 2] == 33 * 47 == matrices.sum()


def test_images_of_all_sizes_share_a_table(tmp_path, backbone, voc_folder):
    Image.new("RGB", (50, 90)).save(voc_folder / "JPEGImages/c.jpg")
    write_mask(voc_folder / "SegmentationClass/c.png", np.zeros((90, 50)))
    rows = all_rows(extract_table(tmp_path / "v", backbone, val_views(read_folder(voc_folder).rows)))
    assert {row.image_id: tuple(row.tokens.shape[:2]) for row in rows} == {"a": (3, 4), "b": (5, 3), "c": (11, 6)}
