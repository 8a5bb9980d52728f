"""Extraction in lower precision, and with a compiled backbone."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small_checkpoints import small_backbone
from small_extraction import COMPUTE, METADATA, write_images
from timm.models.vision_transformer import VisionTransformer

from stages.core.stage import InputError
from stages.data.manifest import Manifest, write_manifest
from stages.features.extraction import extract_shards
from stages.features.shards import Shards
from stages.features.tokens import FeatureTable
from stages.models.compute import prepare_model
from stages.models.vit import Backbone
from stages.params.compute import Compute
from stages.segmentation.extract import SegmentationJob, build_metadata, val_views, view_keys

COMPILED = Compute(precision="float32", compile=True, workers=0, live=False)


@pytest.fixture
def rows(tmp_path):
    return write_images(tmp_path, [(24, 32)] * 4)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


def extract_table(path, backbone, rows, compute=COMPUTE, metadata=METADATA):
    views = val_views(rows)
    shards = Shards(path, view_keys(views), vars(metadata), waiting=path.parent / "waiting")
    extract_shards(SegmentationJob(backbone, views, metadata, compute), shards, compute, "extract")
    shards.commit()
    return FeatureTable(path)


def all_tokens(table):
    return torch.stack([row.tokens.float() for group in range(table.num_groups) for row in table.read_group(group)])


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.004)])
def test_lower_precision_gives_nearly_equal_features(tmp_path, backbone, rows, precision, tolerance):
    """Tokens after the last norm are below 2; the tolerances are 2.5 and 4 times the types' epsilon."""
    exact = all_tokens(extract_table(tmp_path / "exact", backbone, rows))
    compute = COMPUTE.model_copy(update={"precision": precision})
    rounded = all_tokens(extract_table(tmp_path / "rounded", backbone, rows, compute))
    assert 0 < (exact - rounded).abs().max() < tolerance
    assert exact.std() > 0.5


def test_features_of_another_precision_are_refused(tmp_path, backbone, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_manifest(Manifest(rows, "here", ("a", "b")))
    compute = COMPUTE.model_copy(update={"precision": "bfloat16"})
    experiment = SimpleNamespace(active=SimpleNamespace(backbone="tiny"), compute=compute)
    metadata = build_metadata(experiment, backbone, "native size")
    table = extract_table(tmp_path / "table", backbone, rows, compute, metadata)
    assert table.metadata.precision == "bfloat16"
    with pytest.raises(InputError, match="precision is 'bfloat16', expected 'float32'"):
        FeatureTable(tmp_path / "table", precision="float32")


def small_vit():
    """Return a ViT that compiles fast."""
    settings = {"num_classes": 0, "embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_ratio": 1}
    return Backbone(VisionTransformer(img_size=16, patch_size=8, dynamic_img_size=True, **settings))


def random_images(count, height, width):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def assert_equal_up_to_rounding(result, expected):
    """A hundred times the float32 epsilon 1.2e-7, relative to the largest value: rounding errors of one block."""
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@torch.inference_mode()
def test_a_compiled_backbone_gives_the_same_features():
    backbone = small_vit()
    images = random_images(2, 24, 40)
    expected = backbone(images)
    result = prepare_model(backbone, COMPILED)(images)
    assert_equal_up_to_rounding(result.patches, expected.patches)
    assert_equal_up_to_rounding(result.class_token, expected.class_token)


@torch.inference_mode()
def test_images_of_all_sizes_share_one_compiled_graph(monkeypatch):
    """VOC's validation images have hundreds of sizes. Only traced (backend "eager"), which needs no compiler."""
    stats = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    backbone = small_vit()
    compiled = prepare_model(small_vit(), COMPILED)
    compiled.load_state_dict(backbone.state_dict())
    graphs_before = stats["unique_graphs"]
    for size in ((2, 24, 40), (2, 33, 40), (3, 40, 47), (2, 41, 33), (2, 32, 32)):
        images = random_images(*size)
        assert_equal_up_to_rounding(compiled(images).patches, backbone(images).patches)
    assert stats["unique_graphs"] - graphs_before <= 2
