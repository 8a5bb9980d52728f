"""The backbone's named outputs, and the shipped checkpoint."""

import pytest
import torch
from conftest import ROOT

from stages.models import vit

CHECKPOINTS = ROOT / "data/checkpoints"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit.Backbone(vit.build(vit.Architecture(dim=24, depth=3, heads=3, stem=(8, 8, 8, 8))))


def images(height, width, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def test_tokens_have_the_images_grid(backbone):
    tokens = backbone(images(80, 56))
    assert tokens.patches.shape == (2, 10, 7, 24)
    assert tokens.class_token.shape == (2, 24)


def test_the_remainder_at_the_right_and_bottom_is_not_seen(backbone):
    whole = images(43, 61)
    assert torch.equal(backbone(whole).patches, backbone(whole[..., :40, :56]).patches)


def test_attention_sums_to_one_and_is_what_the_block_does(backbone):
    pixels = images(80, 80)
    for block in (0, -1):
        weights = backbone.attention(pixels, block)
        assert weights.shape == (2, 3, 101, 101)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 101))
    seen = {}
    attention = backbone.vit.blocks[-1].attn
    hook = attention.register_forward_hook(lambda _, given, made: seen.update(x=given[0], y=made))
    backbone(pixels)
    hook.remove()
    value = attention.qkv(seen["x"]).unflatten(-1, (3, 3, -1))[:, :, 2].transpose(1, 2)
    mixed = (backbone.attention(pixels) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), seen["y"], atol=1e-5, rtol=1e-4)


def test_a_frozen_backbone_stays_in_eval_mode(backbone):
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(weight.requires_grad for weight in backbone.parameters())


def test_an_image_smaller_than_a_patch_is_refused(backbone):
    with pytest.raises(ValueError, match="smaller than one 8x8 patch"):
        backbone(images(7, 80))


def test_a_checkpoint_carries_its_architecture(tmp_path, backbone):
    architecture = vit.Architecture(dim=24, depth=3, heads=3, stem=(8, 8, 8, 8))
    vit.save(tmp_path / "m.safetensors", backbone.vit, architecture)
    again = vit.load(str(tmp_path / "m.safetensors"))
    assert vit.weights_hash(again.vit) == vit.weights_hash(backbone.vit)
    pixels = images(80, 80)
    assert torch.equal(again(pixels).patches, backbone(pixels).patches)


def test_unknown_backbones_are_named():
    with pytest.raises(ValueError, match="unknown backbone 'vit_tinny'.*such as .*vit_"):
        vit.load("vit_tinny")
    with pytest.raises(FileNotFoundError, match="no backbone checkpoint at nowhere"):
        vit.load("nowhere.safetensors")


def test_shipped_checkpoints_load_and_stay_small():
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png"}
    shipped = vit.load(str(CHECKPOINTS / "vit_scenes/model.safetensors"))
    assert (shipped.dim, shipped.heads, shipped.patch) == (128, 4, (8, 8))


def test_a_tokens_window_is_centred_on_its_patch():
    """The stem's receptive field, from gradients: heads stretch logits as if tokens stood in their patches' middles."""
    stem = vit.build(vit.Architecture()).patch_embed.backbone.eval()
    for conv in (module for module in stem.modules() if isinstance(module, torch.nn.Conv2d)):
        torch.nn.init.ones_(conv.weight)  # every path counts alike, so that the window's middle is its own
    pixels = torch.ones(1, 3, 80, 80, requires_grad=True)
    stem(pixels)[0, :, 5, 4].sum().backward()
    seen = pixels.grad[0].abs().sum(0)
    rows, columns = (torch.arange(80.0) @ seen.sum(axis) / seen.sum() for axis in (1, 0))
    assert rows == pytest.approx(5 * 8 + 3.5, abs=0.01)
    assert columns == pytest.approx(4 * 8 + 3.5, abs=0.01)
