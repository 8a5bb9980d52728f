"""Compared backbones: their layers, weights and costs, and errors that name the param."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, Project, untrained_blip
from loopback import Loopback
from PIL import Image
from small_checkpoints import small_backbone
from timm.models.vision_transformer import VisionTransformer
from transformers import BlipConfig, BlipForConditionalGeneration

from stages.core.skipped import skip_reason
from stages.core.stage import InputError
from stages.data.manifest import Manifest, Row, write_manifest
from stages.models import blip, vit
from stages.models.blip_tower import as_vit
from stages.models.checkpoints.record import Checkpoint, write_checkpoint
from stages.params.backbones import ComparedBackbone
from stages.params.experiment import load_experiment
from stages.segmentation import BACKBONE_FEATURES, extract_backbone
from stages.segmentation.cost import Cost
from stages.segmentation.extract import measure_cost

PIXELS = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
ARCHITECTURE = vit.Architecture(side=24, dim=12, depth=3, heads=3, stem=(4, 4, 4, 4))
WEIGHTS = "vit.safetensors"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params of its own: the profile's backbone is a small ViT."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Project(tmp_path).set(embedded__backbone=WEIGHTS, embedded__blip="blip", backbones={})
    torch.manual_seed(5)
    vit.save(tmp_path / WEIGHTS, vit.build(ARCHITECTURE), ARCHITECTURE)
    write_checkpoint("backbone", Checkpoint(WEIGHTS, WEIGHTS, "0"))
    return tmp_path


def load_compared(**params):
    experiment = load_experiment()
    experiment = experiment.model_copy(update={"backbones": {"mine": ComparedBackbone(**params)}})
    return extract_backbone.load_backbone(experiment, "mine")


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("last", 12, None),
        ("last4", 12, [8, 9, 10, 11]),
        ([11, 0, 5], 12, [0, 5, 11]),
        ([-1], 12, [11]),
        ([-12, -1], 12, [0, 11]),
    ],
)
def test_layers_are_blocks_in_ascending_order(layers, depth, expected):
    assert ComparedBackbone(source="blip", layers=layers).block_indices(depth) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [("last4", "no block -4; the model has 3"), ([3], "no block 3; the model has 3"), ([0, -3], "listed twice")],
)
def test_a_block_that_the_model_lacks_is_named(project, layers, message):
    with pytest.raises(InputError, match=f"^backbones.mine.layers: .*{message}"):
        load_compared(source="backbone", layers=layers)


def test_the_last_block_is_the_output_and_several_are_concatenated():
    whole = small_backbone()
    last = small_backbone()
    last.load_state_dict(whole.state_dict())
    last.use_blocks([1])
    assert torch.equal(last(PIXELS).patches, whole(PIXELS).patches)
    assert torch.equal(last(PIXELS).class_token, whole(PIXELS).class_token)
    both = small_backbone()
    both.load_state_dict(whole.state_dict())
    both.use_blocks([1, 0])
    tokens = both(PIXELS)
    assert tokens.patches.shape == (2, 3, 4, 24)
    assert both.dim == 24
    assert torch.equal(tokens.patches[..., 12:], whole(PIXELS).patches)  # the second block is the last
    # The first block alone, by the definition: its output after the last norm.
    del whole.vit.blocks[1]
    assert torch.equal(tokens.patches[..., :12], whole(PIXELS).patches)


def test_blocks_of_a_model_without_a_class_token_are_concatenated():
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=12,
        depth=2,
        num_heads=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        dynamic_img_size=True,
    )
    backbone = vit.Backbone(model)
    expected = backbone(PIXELS).patches
    backbone.use_blocks([0, 1])
    tokens = backbone(PIXELS)
    assert tokens.class_token is None
    assert torch.equal(tokens.patches[..., 12:], expected)


def test_random_weights_depend_on_the_seed_and_the_name_alone(project):
    pretrained, source = load_compared(source="backbone")
    assert source == WEIGHTS
    first = vit.weights_hash(load_compared(source="backbone", random=True)[0])
    torch.manual_seed(7)  # whatever was drawn before
    assert vit.weights_hash(load_compared(source="backbone", random=True)[0]) == first
    assert first != vit.weights_hash(pretrained)
    experiment = load_experiment()
    other = {"backbones": {"other": ComparedBackbone(source="backbone", random=True)}}
    backbone, _ = extract_backbone.load_backbone(experiment.model_copy(update=other), "other")
    assert vit.weights_hash(backbone) != first


def test_a_timm_model_with_random_weights_needs_no_file_and_no_network(project):
    backbone, source = load_compared(source="vit_tiny_patch16_224.augreg_in21k", random=True)
    assert (source, backbone.dim, len(backbone.blocks)) == ("vit_tiny_patch16_224.augreg_in21k", 192, 12)
    assert backbone.mean == (0.5, 0.5, 0.5)  # of the pretrained model


@pytest.mark.parametrize("source", ["nowhere.safetensors", "vit_tinny_patch16_224"])
def test_a_source_that_does_not_exist_is_named(project, source):
    with pytest.raises(InputError, match=f"^backbones.mine.source = '{source}': "):
        load_compared(source=source)


def test_a_file_on_the_web_is_downloaded_once(project):
    with Loopback({"/mine.safetensors": (project / WEIGHTS).read_bytes()}) as server:
        url = server.url("/mine.safetensors")
        backbone, source = load_compared(source=url)
        load_compared(source=url)
        assert server.count("/mine.safetensors") == 1
    assert source == url
    own, _ = load_compared(source="backbone")
    assert vit.weights_hash(backbone) == vit.weights_hash(own)


def test_blips_tower_is_the_image_tower(project):
    untrained_blip(project / "blip")
    write_checkpoint("blip", Checkpoint("blip", "blip", "0"))
    backbone, source = load_compared(source="blip")
    assert source == "blip"
    pixels = vit.normalize(torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)).double()
    with torch.no_grad():
        expected = blip.load(BlipForConditionalGeneration, "blip").vision_model.double()(pixels).last_hidden_state
        actual = backbone.double().vit.forward_features(pixels)
    torch.testing.assert_close(actual, expected)
    assert backbone.mean == vit.MEAN


def test_a_plain_tower_has_transformers_output():
    """Of the architecture of the published BLIP, at the size of its position embeddings."""
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 256,
        "image_size": 32,
        "patch_size": 16,
        "layer_norm_eps": 1e-5,
    }
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text)).eval()
    with torch.no_grad():
        for weight in model.vision_model.parameters():
            weight.normal_(0, 0.1)
        pixels = vit.normalize(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).double()
        backbone = as_vit(model.vision_model, "tiny")
        actual = backbone.double().vit.forward_features(pixels)
        expected = model.vision_model.double()(pixels).last_hidden_state
    torch.testing.assert_close(actual, expected)


def test_costs_are_those_counted_by_hand():
    backbone = vit.Backbone(
        VisionTransformer(img_size=16, patch_size=8, embed_dim=4, depth=1, num_heads=2, num_classes=3)
    )
    tokens = 5  # four patches and the class token
    multiplications = 4 * 4 * 3 * 8 * 8  # patch embedding
    multiplications += tokens * 4 * 12  # queries, keys and values
    multiplications += 2 * tokens * tokens * 4  # scores, and sums of values
    multiplications += tokens * 4 * 4  # projection
    multiplications += 2 * tokens * 4 * 16  # MLP
    weights = (3 * 8 * 8 * 4 + 4) + (tokens * 4) + 4  # patch embedding, position embeddings, class token
    weights += (4 * 12 + 12) + (4 * 4 + 4) + (4 * 16 + 16) + (16 * 4 + 4) + 3 * 2 * 4  # a block and three norms
    assert measure_cost(backbone, 16) == Cost(weights, 2 * multiplications, 4)


def test_a_backbone_that_cannot_be_used_is_skipped_with_the_reason(project):
    Image.new("RGB", (24, 24)).save(project / "image.jpg")
    row = Row("a", "train", "image.jpg", height=24, width=24)
    masked = replace(row, mask="image.png")
    write_manifest(Manifest((row, replace(row, image_id="b", split="val")), "photos", ()))
    Project(project).set(backbones={"mine": {"source": "backbone"}, "tower": {"source": "blip"}})
    extract_backbone.main("mine")
    assert skip_reason(BACKBONE_FEATURES / "mine") == "photos has no masks: no segmentation"
    experiment = load_experiment()
    paper = experiment.model_copy(update={"profile": "paper"})
    manifest = Manifest((masked,), "voc", ("background", "cat"))
    assert (
        extract_backbone.cause_to_skip(paper, "tower", manifest) == "paper has no captions: its BLIP is not downloaded"
    )
    assert extract_backbone.cause_to_skip(paper, "mine", manifest) is None
    assert extract_backbone.cause_to_skip(experiment, "tower", manifest) is None
    with pytest.raises(InputError, match="unknown backbone 'other'; backbones has: mine, tower"):
        extract_backbone.main("other")
