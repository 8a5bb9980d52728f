"""The backbone's named outputs, and the shipped checkpoint."""

import pytest
import torch
from conftest import ROOT
from float_tolerance import assert_close
from small_checkpoints import Float64Backbone

from stages.models import vit

CHECKPOINTS = ROOT / "data/checkpoints"
ARCHITECTURE = vit.Architecture(dim=24, depth=3, heads=3, stem=(8, 8, 8, 8))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit.Backbone(vit.build(ARCHITECTURE))


def images(height, width, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def test_tokens_form_the_grid_of_the_image(backbone):
    tokens = backbone(images(80, 56))
    assert tokens.patches.shape == (2, 10, 7, 24)
    assert tokens.class_token.shape == (2, 24)


def test_the_remainder_at_the_right_and_bottom_is_ignored(backbone):
    whole = images(43, 61)
    cut = whole[..., :40, :56].contiguous()
    assert torch.equal(backbone(whole).patches, backbone(cut).patches)


def test_attention_sums_to_one_and_explains_the_output_of_its_layer():
    backbone = Float64Backbone(vit.build(ARCHITECTURE))
    pixels = images(80, 80)
    for block in (0, -1):
        weights = backbone.attention(pixels, block)
        assert weights.shape == (2, 3, 101, 101)
        assert_close(weights.sum(-1), torch.ones(2, 3, 101, dtype=torch.float64))
    captured = {}
    attention = backbone.vit.blocks[-1].attn
    hook = attention.register_forward_hook(lambda _, args, output: captured.update(x=args[0], output=output))
    backbone(pixels)
    hook.remove()
    values = attention.qkv(captured["x"]).unflatten(-1, (3, 3, -1))[:, :, 2].transpose(1, 2)
    mixed = (backbone.attention(pixels) @ values).transpose(1, 2).flatten(2)
    assert_close(attention.proj(mixed), captured["output"])


def test_a_frozen_backbone_stays_in_eval_mode(backbone):
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(weight.requires_grad for weight in backbone.parameters())


def test_an_image_smaller_than_a_patch_is_rejected(backbone):
    with pytest.raises(ValueError, match="smaller than one 8x8 patch"):
        backbone(images(7, 80))


def test_a_checkpoint_carries_its_architecture(tmp_path, backbone):
    vit.save(tmp_path / "m.safetensors", backbone.vit, ARCHITECTURE)
    loaded = vit.load(str(tmp_path / "m.safetensors"))
    assert loaded.architecture == vit.read_architecture(tmp_path / "m.safetensors") == ARCHITECTURE
    assert vit.weights_hash(loaded.vit) == vit.weights_hash(backbone.vit)
    with pytest.raises(ValueError, match="blip_scenes/model.safetensors has no architecture"):
        vit.read_architecture(CHECKPOINTS / "blip_scenes/model.safetensors")


def test_saving_the_shipped_checkpoint_again_gives_its_bytes(tmp_path):
    path = CHECKPOINTS / "vit_scenes/model.safetensors"
    vit.save(tmp_path / "m.safetensors", vit.load(str(path)).vit, vit.read_architecture(path))
    assert (tmp_path / "m.safetensors").read_bytes() == path.read_bytes()


def test_unknown_backbones_are_errors_with_suggestions():
    with pytest.raises(ValueError, match="unknown backbone 'vit_tinny'.*such as .*vit_"):
        vit.load("vit_tinny")
    with pytest.raises(FileNotFoundError, match="no backbone checkpoint at nowhere"):
        vit.load("nowhere.safetensors")


def test_shipped_checkpoints_load_and_stay_small():
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png"}
    shipped = vit.load(str(CHECKPOINTS / "vit_scenes/model.safetensors"))
    assert (shipped.dim, shipped.heads, shipped.patch) == (128, 4, (8, 8))


def test_the_receptive_field_of_a_token_is_centered_on_its_patch():
    """From the gradients of the stem. Segmentation heads upsample logits as if tokens lay at the centers of patches."""
    stem = vit.build(vit.Architecture()).patch_embed.backbone.eval()
    for module in stem.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.ones_(module.weight)  # equal weights, so that the center of gravity is the geometric center
    pixels = torch.ones(1, 3, 80, 80, requires_grad=True)
    stem(pixels)[0, :, 5, 4].sum().backward()
    influence = pixels.grad[0].abs().sum(0)  # (80, 80)
    row = torch.arange(80.0) @ influence.sum(1) / influence.sum()
    column = torch.arange(80.0) @ influence.sum(0) / influence.sum()
    assert row == pytest.approx(5 * 8 + 3.5, abs=0.01)
    assert column == pytest.approx(4 * 8 + 3.5, abs=0.01)
