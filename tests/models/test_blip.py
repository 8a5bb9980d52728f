"""The shipped BLIP in transformers' classes, its tokenizer, its files."""

import pytest
import torch
from conftest import ROOT, untrained_blip
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.data.scenes import captions, web
from stages.models import blip, vit

SHIPPED = str(ROOT / "data/checkpoints/blip_scenes")


@pytest.mark.parametrize("kind", [BlipForConditionalGeneration, BlipForImageTextRetrieval])
def test_both_classes_load_the_shipped_weights_key_for_key(kind):
    model = blip.load(kind, SHIPPED)  # load_state_dict is strict: no key missing, none left over
    kept = load_file(f"{SHIPPED}/model.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept[name]), name
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_file_holds_what_the_two_classes_have_and_nothing_else():
    both = set()
    for kind in (BlipForConditionalGeneration, BlipForImageTextRetrieval):
        both |= blip.load(kind, SHIPPED).state_dict().keys()
    assert both == load_file(f"{SHIPPED}/model.safetensors").keys()


def test_all_checkpoints_together_stay_small():
    assert sum(path.stat().st_size for path in (ROOT / "data/checkpoints").rglob("*")) < 20e6


def test_the_decoder_alone_is_the_captioners():
    states, tokens = torch.randn(2, 101, 128), torch.tensor([[4, 7, 9], [4, 8, 10]])
    alone = blip.load_decoder(SHIPPED)(tokens, encoder_hidden_states=states).logits
    whole = blip.load(BlipForConditionalGeneration, SHIPPED).text_decoder(tokens, encoder_hidden_states=states).logits
    assert torch.equal(alone, whole)


def test_every_word_of_scenes_survives_the_tokenizer():
    tokenizer = blip.load_tokenizer(SHIPPED)
    text = " ".join(sorted(web.vocabulary()))
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert captions.vocabulary() <= web.vocabulary()


def test_the_tokenizer_reads_lower_case_without_punctuation():
    tokenizer = blip.load_tokenizer(SHIPPED)
    assert tokenizer("A Red, circle!").input_ids == tokenizer("a red circle").input_ids
    assert tokenizer("a dog", add_special_tokens=False).input_ids[1] == tokenizer.unk_token_id


def test_special_tokens_are_where_the_config_says():
    tokenizer, config = blip.load_tokenizer(SHIPPED), blip.load_decoder(SHIPPED).config
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[SEP]", "[DEC]"]) == [
        config.pad_token_id,
        config.sep_token_id,
        config.bos_token_id,
    ]
    assert config.vocab_size == len(tokenizer)


def test_an_image_tower_started_from_a_vit_sees_what_the_vit_sees():
    path = ROOT / "data/checkpoints/vit_scenes/model.safetensors"
    architecture = vit.read_architecture(path)
    model = blip.build(BlipForConditionalGeneration, blip.small_config(architecture, 90)).eval()
    blip.start_from_vit(model, load_file(path))
    images = torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)
    with torch.no_grad():
        states, tokens = model.vision_model(vit.normalize(images)).last_hidden_state, vit.load(str(path))(images)
    assert torch.allclose(states[:, 0], tokens.class_token, atol=1e-4)
    assert torch.allclose(states[:, 1:], tokens.patches.flatten(1, 2), atol=1e-4)


def test_saved_and_loaded_is_the_same(tmp_path):
    untrained_blip(tmp_path / "one")
    one = blip.load(BlipForImageTextRetrieval, str(tmp_path / "one"))
    assert one.itm_head.weight.shape == (2, 32)
    pixels = blip.load_preprocessing(str(tmp_path / "one"))
    assert pixels == blip.Preprocessing(80, vit.MEAN, vit.STD)
    untrained_blip(tmp_path / "again")
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        for name in ("model.safetensors", "config.json", "tokenizer.json")
    )


def test_a_checkpoint_without_some_parts_is_refused_not_filled_at_random(tmp_path):
    config = blip.small_config(vit.Architecture(dim=32, depth=1), 90, layers=1, projection=16)
    del config.vision_config.stem
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "captioner")
    assert blip.load_decoder(str(tmp_path / "captioner")).config.vocab_size == 90
    with pytest.raises(ValueError, match=r"holds no weights for itm_head, text_encoder, text_proj, vision_proj"):
        blip.load(BlipForImageTextRetrieval, str(tmp_path / "captioner"))


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="no BLIP checkpoint at data/checkpoints/nowhere"):
        blip.load(BlipForImageTextRetrieval, "data/checkpoints/nowhere")
