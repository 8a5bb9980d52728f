"""The shipped BLIP in the classes of transformers, its tokenizer and its files."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT, untrained_blip
from float_tolerance import assert_close
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from stages.core.stage import InputError
from stages.data.scenes import captions, web
from stages.models import blip, vit
from stages.models.checkpoints.record import loading_errors

SHIPPED = str(ROOT / "data/checkpoints/blip_scenes")


@pytest.mark.parametrize("kind", [BlipForConditionalGeneration, BlipForImageTextRetrieval])
def test_both_classes_load_the_shipped_weights_key_for_key(kind):
    model = blip.load(kind, SHIPPED)  # load_state_dict is strict: no key missing, none left over
    weights = load_file(f"{SHIPPED}/model.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_file_has_the_keys_of_both_classes_and_no_others():
    keys = set()
    for kind in (BlipForConditionalGeneration, BlipForImageTextRetrieval):
        keys |= blip.load(kind, SHIPPED).state_dict().keys()
    assert keys == load_file(f"{SHIPPED}/model.safetensors").keys()


def test_load_decoder_gives_the_decoder_of_the_captioner():
    decoder = blip.load_decoder(SHIPPED)
    expected = blip.load(BlipForConditionalGeneration, SHIPPED).text_decoder
    assert type(decoder) is type(expected)
    assert decoder.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in decoder.state_dict().items())
    assert decoder.config.to_dict() == expected.config.to_dict()
    assert not decoder.training


def test_the_tokenizer_knows_every_word_of_scenes():
    tokenizer = blip.load_tokenizer(SHIPPED)
    text = " ".join(sorted(web.vocabulary()))
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert captions.vocabulary() <= web.vocabulary()


def test_the_tokenizer_ignores_case_and_punctuation():
    tokenizer = blip.load_tokenizer(SHIPPED)
    assert tokenizer("A Red, circle!").input_ids == tokenizer("a red circle").input_ids
    assert tokenizer("a dog", add_special_tokens=False).input_ids[1] == tokenizer.unk_token_id


def test_tokenizer_and_config_have_the_same_special_ids():
    tokenizer = blip.load_tokenizer(SHIPPED)
    config = blip.load_decoder(SHIPPED).config
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[SEP]", "[DEC]"]) == [
        config.pad_token_id,
        config.sep_token_id,
        config.bos_token_id,
    ]
    assert config.vocab_size == len(tokenizer)


def test_an_image_tower_started_from_a_vit_has_its_output():
    path = ROOT / "data/checkpoints/vit_scenes/model.safetensors"
    model = blip.build(BlipForConditionalGeneration, blip.small_config(vit.read_architecture(path), 90)).eval()
    blip.start_from_vit(model, load_file(path))
    pixels = vit.normalize(torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)).double()
    with torch.no_grad():
        states = model.vision_model.double()(pixels).last_hidden_state
        tokens = vit.load(str(path)).vit.double().forward_features(pixels)
    assert_close(states, tokens)


def test_an_image_tower_does_not_start_from_another_vit():
    architecture = vit.Architecture(dim=32, depth=1)
    model = blip.build(BlipForConditionalGeneration, blip.small_config(architecture, 90))
    weights = vit.build(architecture).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key.*extra"):
        blip.start_from_vit(model, weights | {"extra": torch.zeros(1)})
    del weights["norm.bias"]
    with pytest.raises(RuntimeError, match="Missing key.*post_layernorm.bias"):
        blip.start_from_vit(model, weights)


def test_saving_twice_gives_the_same_bytes_and_they_load(tmp_path):
    untrained_blip(tmp_path / "first")
    model = blip.load(BlipForImageTextRetrieval, str(tmp_path / "first"))
    assert model.itm_head.weight.shape == (2, 32)
    assert blip.load_preprocessing(str(tmp_path / "first")) == blip.Preprocessing(80, vit.MEAN, vit.STD)
    untrained_blip(tmp_path / "second")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_missing_parts_are_an_error_and_not_random_weights(tmp_path):
    config = blip.small_config(vit.Architecture(dim=32, depth=1), 90, layers=1, projection=16)
    del config.vision_config.stem
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "captioner")
    assert blip.load_decoder(str(tmp_path / "captioner")).config.vocab_size == 90
    with pytest.raises(ValueError, match=r"holds no weights for itm_head, text_encoder, text_proj, vision_proj"):
        blip.load(BlipForImageTextRetrieval, str(tmp_path / "captioner"))


def test_a_missing_folder_is_an_error():
    with pytest.raises(FileNotFoundError, match="no BLIP checkpoint at data/checkpoints/nowhere"):
        blip.load(BlipForImageTextRetrieval, "data/checkpoints/nowhere")


class Payload:
    """Creates a file where it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def transformers_folder(tmp_path):
    """A folder as transformers saves it, with safetensors."""
    config = blip.small_config(vit.Architecture(dim=32, depth=1, heads=2), 64, layers=1, projection=16)
    config.vision_config.stem = None
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


def test_code_in_a_folder_with_safetensors_is_not_read(transformers_folder):
    executed = transformers_folder / "executed"
    torch.save(Payload(executed), transformers_folder / "pytorch_model.bin")
    blip.load(BlipForConditionalGeneration, str(transformers_folder))
    assert not executed.exists()


@pytest.mark.parametrize("content", ["code", "empty", "garbage"])
def test_code_in_a_folder_of_pickled_weights_is_one_line_and_not_executed(transformers_folder, content):
    executed = transformers_folder / "executed"
    (transformers_folder / blip.WEIGHTS).unlink()
    path = transformers_folder / "pytorch_model.bin"
    if content == "code":
        torch.save({"weight": Payload(executed)}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"garbage" * 99)
    with pytest.raises(InputError) as error_info, loading_errors("folder.blip", str(transformers_folder)):
        blip.load(BlipForConditionalGeneration, str(transformers_folder))
    assert not executed.exists()
    message = str(error_info.value)
    assert message.startswith(f"folder.blip = '{transformers_folder}': ")
    assert "\n" not in message
    assert "weights_only" not in message


@pytest.mark.parametrize("value", [0, -1, "x", None, [], 10**30])
@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size"])
def test_a_wrong_size_in_the_config_is_one_line(tmp_path, key, value):
    untrained_blip(tmp_path)
    path = tmp_path / blip.CONFIG
    config = json.loads(path.read_text())
    config["vision_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as error_info, loading_errors("folder.blip", str(tmp_path)):
        blip.load(BlipForConditionalGeneration, str(tmp_path))
    assert str(error_info.value).startswith(f"folder.blip = '{tmp_path}': ")
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    untrained_blip(tmp_path)
    weights = load_file(tmp_path / blip.WEIGHTS)
    name = "text_decoder.bert.encoder.layer.0.output.dense.bias"
    weights[name][0] = value
    save_file(weights, tmp_path / blip.WEIGHTS)
    with pytest.raises(ValueError, match=f"NaN or infinite weights: {name}"):
        blip.load(BlipForConditionalGeneration, str(tmp_path))
    with pytest.raises(ValueError, match=f"NaN or infinite weights: {name.removeprefix('text_decoder.')}"):
        blip.load_decoder(str(tmp_path))
    blip.load(BlipForImageTextRetrieval, str(tmp_path))  # it has no decoder
