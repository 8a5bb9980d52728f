"""Attention maps are of the right patches, are plotted where they belong, and are measured correctly."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, untrained_blip, write_mask
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from stages.attention import caption_attention, class_attention, short_name
from stages.attention.attention_share import compute_attention_share
from stages.attention.class_token import AttentionMaps, class_token_attention, resize_to_patches
from stages.attention.examples import select_examples
from stages.attention.maps import (
    attention_mass,
    check_rows_sum_to_one,
    class_token_maps,
    density,
    object_area,
    peak_pixel,
    relative_to_uniform,
    resolve_index,
    rollout,
    upsample,
)
from stages.attention.panels import Panel, overlay, plot_positions, plot_rows
from stages.attention.position_similarity import plot_vit
from stages.attention.positions import cosine_similarity, grid_structure, has_positions, position_grid
from stages.attention.word_referents import Referent, referents_by_class_name, referents_in_scene
from stages.attention.words import END, Word, extract_words, generated_token_attention, merge_word_pieces
from stages.captioning import PREDICTIONS
from stages.captioning.captioner import Captioner
from stages.captioning.text_decoders import BlipDecoder
from stages.core.stage import InputError
from stages.data.manifest import Manifest, Row
from stages.data.scenes.scene import CLASSES, SceneObject
from stages.models import blip, vit
from stages.params.attention import CaptionAttention, ClassTokenAttention
from stages.params.experiment import load_experiment
from stages.params.section import validate_params


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit.Backbone(vit.build(vit.Architecture(side=40, dim=24, depth=3, heads=3, stem=(8, 8, 8, 8))))


def map_with_peak(rows: int, columns: int, row: int, column: int) -> torch.Tensor:
    """A map with all attention on one patch."""
    attention = torch.zeros(rows, columns)
    attention[row, column] = 1
    return attention


def random_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Maps


def test_rows_that_do_not_sum_to_one_are_refused():
    assert check_rows_sum_to_one(torch.tensor([[0.25, 0.75]])).shape == (1, 2)
    with pytest.raises(ArithmeticError, match="off by 0.1"):
        check_rows_sum_to_one(torch.tensor([[0.5, 0.6]]))
    with pytest.raises(ArithmeticError, match="off by nan"):
        check_rows_sum_to_one(torch.tensor([[torch.nan, 0.6]]))


def test_indices_may_count_from_the_last():
    assert [resolve_index(3, index, "param", "blocks") for index in (0, 2, -1, -3)] == [0, 2, 2, 0]


@pytest.mark.parametrize("prefix", [1, 5])
def test_class_token_maps_leave_out_prefix_tokens(prefix):
    tokens = prefix + 3 * 5
    weights = torch.full((2, 4, tokens, tokens), 0.1 / (tokens - 1))
    weights[:, :, 0, prefix + 2 * 5 + 1] = 0.9  # row 2, column 1
    weights[:, :, 1:] = 1 / tokens
    maps = class_token_maps(weights, prefix, (3, 5))
    assert maps.shape == (2, 4, 3, 5)
    assert (maps.flatten(2).argmax(2) == 2 * 5 + 1).all()


def test_rollout_by_hand():
    first = torch.tensor([[[[0.2, 0.8, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]]])
    second = torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]])
    # Averaged with the identity: [.6 .4 0 | 0 1 0 | .25 0 .75], and for the second [.5 0 .5 | 0 1 0 | 0 0 1]
    maps = rollout([first, second], 1, (1, 2))
    torch.testing.assert_close(maps, torch.tensor([[[0.5 * 0.4, 0.5 * 0.75]]]))


def test_rollout_is_the_first_row_of_the_full_product():
    """The formula with whole matrices, in float64. A sum of n terms is off by at most n eps of its positive terms."""
    blocks = [torch.rand(2, 3, 21, 21, dtype=torch.float64).softmax(-1) for _ in range(5)]
    product = torch.eye(21, dtype=torch.float64)
    for weights in blocks:
        product = (weights.mean(1) + torch.eye(21, dtype=torch.float64)) / 2 @ product
    maps = rollout(blocks, 1, (4, 5))
    terms = len(blocks) * (21 + 5)  # per block: a dot product, the mean of three heads, the identity, the half
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(maps, product[:, 0, 1:].unflatten(-1, (4, 5)), rtol=2 * terms * eps, atol=0)


def test_rollout_refuses_weights_of_any_block_that_do_not_sum_to_one():
    blocks = [torch.full((1, 1, 3, 3), 1 / 3) for _ in range(3)]
    blocks[0] = blocks[0] * 1.1
    with pytest.raises(ArithmeticError, match="off by 0.1"):
        rollout(blocks, 1, (1, 2))


def test_upsampled_maps_keep_their_values_at_patch_centers():
    upsampled = upsample(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), (6, 6))
    assert upsampled[1, 1] == pytest.approx(0.0, abs=1e-5)  # values up to 3, two float32 interpolations
    assert upsampled[4, 4] == pytest.approx(3.0, rel=1e-5)
    assert upsample(torch.rand(2, 3, 4, 5), (8, 10)).shape == (2, 3, 8, 10)
    assert relative_to_uniform(torch.tensor([[1.0, 3.0]])).tolist() == [[0.5, 1.5]]


def test_mass_and_area_by_hand():
    densities = density(np.array([[0.1, 0.2], [0.3, 0.4]]), (4, 4))
    assert densities.sum() == pytest.approx(1)
    assert densities[0, 3] == pytest.approx(0.05)
    inside = np.zeros((4, 4), bool)
    inside[2:, 3] = True  # half of the patch with .4
    counted = np.ones((4, 4), bool)
    assert attention_mass(densities, inside, counted) == pytest.approx(20)
    assert object_area(inside, counted) == pytest.approx(12.5)
    counted[:2] = False  # void: .3 of the mass and half of the pixels
    assert attention_mass(densities, inside, counted) == pytest.approx(100 * 0.2 / 0.7)
    assert object_area(inside, counted) == pytest.approx(25)


def test_density_of_sides_that_are_not_multiples_of_the_grid():
    densities = density(np.array([[1.0, 3.0]]), (2, 5))
    assert densities.sum() == pytest.approx(1)
    assert densities[:, :2].sum() == pytest.approx(0.25)  # the middle column's center is on the border: right patch


@pytest.mark.parametrize(("size", "expected"), [((2, 5), (1, 3)), ((8, 8), (4, 6))])
def test_the_peak_is_the_center_of_the_patch_with_the_highest_attention(size, expected):
    """The higher weight wins, however many pixels its patch covers."""
    assert peak_pixel(torch.tensor([[0.45, 0.55]]), size) == expected


def test_attention_shares_by_hand():
    mass = np.array([30.0, 50.0, 10.0])
    area = np.array([10.0, 20.0, 30.0])
    share = compute_attention_share(mass, area, np.array([0, 0, 1]), seed=1)
    assert (share["mass"], share["area"], share["times"], share["count"]) == pytest.approx((30.0, 20.0, 1.5, 3))
    # The extremes are samples that contain only one of the two images.
    assert (share["mass_low"], share["mass_high"]) == pytest.approx((10.0, 40.0))


def test_uniform_attention_has_a_share_of_one():
    mass = np.array([10.0, 20.0])
    share = compute_attention_share(mass, mass, np.array([0, 1]), seed=1)
    assert (share["times"], share["times_low"], share["times_high"]) == (1.0, 1.0, 1.0)


# Class token


@pytest.mark.parametrize("size", [(40, 40), (40, 72), (24, 40)])
def test_maps_of_an_image_of_any_shape(backbone, size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    (maps,) = class_token_attention(backbone, [pixels], -1, with_rollout=True)
    grid = (size[0] // 8, size[1] // 8)
    assert maps.heads.shape == (3, *grid)
    assert maps.rollout.shape == maps.mean.shape == grid
    torch.testing.assert_close(maps.heads, backbone.attention(pixels[None])[0, :, 0, 1:].unflatten(-1, grid))


def test_attention_maps_take_one_pass_of_each_layer(backbone):
    """Not a second one for the weights: that costs a third of a ViT-B's pass."""
    calls = Counter()
    names = {module: name for name, module in backbone.vit.named_modules() if isinstance(module, torch.nn.Linear)}
    handles = [module.register_forward_hook(lambda layer, *_: calls.update([names[layer]])) for module in names]
    class_token_attention(backbone, [torch.zeros(3, 40, 40, dtype=torch.uint8)], -1, with_rollout=True)
    for handle in handles:
        handle.remove()
    assert {"blocks.0.attn.qkv", "blocks.2.attn.proj", "blocks.2.mlp.fc2"} <= set(calls)
    assert set(calls.values()) == {1}


def test_a_block_out_of_range_is_named(backbone):
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"attention.class_token.block = 3: there are 3 blocks, 0 to 2"):
        class_token_attention(backbone, [pixels], 3, with_rollout=False)


def test_images_are_resized_to_whole_patches():
    assert resize_to_patches(Image.new("RGB", (320, 240)), 80, (8, 8)).shape == (3, 80, 104)
    assert resize_to_patches(Image.new("RGB", (50, 200)), 80, (16, 16)).shape == (3, 320, 80)
    unchanged = random_image(80, 88)
    assert np.array_equal(resize_to_patches(unchanged, 80, (8, 8)).permute(1, 2, 0).numpy(), np.asarray(unchanged))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_vits_with_register_tokens(no_embed_class):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    network = VisionTransformer(**settings, reg_tokens=4, no_embed_class=no_embed_class, dynamic_img_size=True)
    prefix = 0 if no_embed_class else 5
    assert torch.equal(position_grid(network)[1, 2], network.pos_embed[0, prefix + 1 * 4 + 2])
    backbone = vit.Backbone(network)
    pixels = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    (maps,) = class_token_attention(backbone, [pixels], 0, with_rollout=True)
    assert maps.heads.shape == (3, 4, 6)
    torch.testing.assert_close(maps.heads, backbone.attention(pixels[None], 0)[0, :, 0, 5:].unflatten(-1, (4, 6)))


def test_class_token_attention_on_an_object_by_hand(tmp_path):
    mask = np.zeros((6, 6))
    mask[:3, 3:] = 4
    mask[0, 3] = 255
    write_mask(tmp_path / "m.png", mask)
    row = Row("i", "val", "i.png", str(tmp_path / "m.png"))
    top_right = map_with_peak(2, 2, 0, 1)  # on the object
    bottom_left = map_with_peak(2, 2, 1, 0)
    maps = AttentionMaps(torch.stack([top_right, bottom_left]), top_right)
    measurement = class_attention.measure_image(row, maps, background=0)
    assert measurement["area"] == pytest.approx(100 * 8 / 35)
    assert measurement["mean_mass"] == pytest.approx(100 * (0.5 * 8 / 9) / (1 - 0.5 / 9))  # 1/9 of the patch is void
    assert measurement["rollout_mass"] == pytest.approx(100)
    assert measurement["hit"] == 100  # the first of two equal patches
    miss = class_attention.measure_image(row, AttentionMaps(bottom_left[None], None), background=0)
    assert (miss["mean_mass"], miss["hit"], "rollout_mass" in miss) == (0, 0, False)
    metrics = class_attention.compute_metrics([measurement, {**measurement, "hit": 0.0}], seed=0)
    assert (metrics["hit"], metrics["mean_count"], metrics["images"]) == (50, 2, 2)
    assert metrics["mean_times"] == pytest.approx(measurement["mean_mass"] / measurement["area"])


@pytest.mark.parametrize(("images", "expected"), [("all", "0123567"), (3, "037"), (100, "0123567")])
def test_a_sample_is_picked_evenly_from_the_images_with_masks(tmp_path, backbone, images, expected):
    mask = np.zeros((40, 40))
    mask[:20] = 1
    write_mask(tmp_path / "m.png", mask)
    random_image(40, 40).save(tmp_path / "i.png")
    rows = []
    for index in range(8):
        masked = str(tmp_path / "m.png") if index != 4 else None
        rows.append(Row(str(index), "val", str(tmp_path / "i.png"), masked))
    manifest = Manifest((Row("train", "train", "none.png", "none.png"), *rows), "test", ("background", "object"))
    params = load_experiment(ROOT / "params.yaml").attention.class_token.model_copy(update={"images": images})
    measurements = class_attention.measure_split(class_attention.Model("m", backbone, {}), manifest, 40, params)
    assert "".join(measurement["image_id"] for measurement in measurements) == expected
    assert class_attention.compute_metrics(measurements, seed=0)["images"] == len(expected)


@pytest.mark.parametrize("images", [0, -3, True, "100", "none", 2.5])
def test_a_sample_is_all_or_a_positive_number(images):
    content = {"block": -1, "rollout": True, "setting": "base", "images": images}
    with pytest.raises(InputError) as error:
        validate_params(ClassTokenAttention, content, "attention.class_token.")
    assert str(error.value) == (
        f"params.yaml: attention.class_token.images = {images!r}: must be an integer from 1 to 10000000 or 'all'"
    )


# Pictures


@pytest.mark.parametrize(("size", "grid"), [((60, 100), (3, 5)), ((61, 98), (3, 5)), ((80, 80), (10, 10))])
def test_the_overlay_is_red_at_the_patch_with_attention_and_blue_elsewhere(size, grid):
    row = grid[0] - 1
    column = 1
    colors = overlay(np.full((*size, 3), 128, np.uint8), map_with_peak(*grid, row, column), scale_max=1.0)
    assert colors.shape == (*size, 3)
    redness = colors[..., 0] - colors[..., 2]
    y, x = np.unravel_index(redness.argmax(), size)
    assert row * size[0] / grid[0] <= y < (row + 1) * size[0] / grid[0]
    assert column * size[1] / grid[1] <= x < (column + 1) * size[1] / grid[1]
    opposite_corner = colors[: size[0] // grid[0] // 2, -size[1] // grid[1] :]
    assert (opposite_corner[..., 2] > opposite_corner[..., 0]).all()


def test_the_overlay_is_aligned_with_the_image_in_the_picture(tmp_path):
    """In the picture's own pixels: the red spot is where the patch is in the blue panel."""
    image = Image.new("RGB", (50, 30), (128, 128, 128))
    panel = Panel("map", map_with_peak(3, 5, 2, 1))
    plot_rows(tmp_path / "p.png", [(image, "image", [panel])], "t", shared_scale=True)
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    pixels = pixels[:, : int(0.85 * pixels.shape[1])]  # without the color bar
    blueness = pixels[..., 2] - pixels[..., 0]
    rows, columns = (np.flatnonzero((blueness > 60).any(axis)) for axis in (1, 0))
    y, x = np.argwhere(blueness < -60).mean(0) - (rows[0], columns[0])
    assert 2 / 3 < y / (rows[-1] - rows[0]) < 1
    assert 1 / 5 < x / (columns[-1] - columns[0]) < 2 / 5


def test_many_panels_wrap_and_the_picture_is_the_same_bytes_again(tmp_path):
    panels = [Panel(f"head {index}", torch.rand(3, 5)) for index in range(7)]
    for name in ("a.png", "b.png"):
        plot_rows(tmp_path / name, [(random_image(30, 50), "image", panels)], "title", shared_scale=False)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    width, height = Image.open(tmp_path / "a.png").size
    assert width < 6 * height  # two lines of four panels


def test_examples_are_selected_by_id_or_by_number():
    rows = tuple(Row(f"image_{index}", "val", f"{index}.png") for index in range(5))
    assert [row.image_id for row in select_examples(rows, 3, "k")] == ["image_0", "image_2", "image_4"]
    assert [row.image_id for row in select_examples(rows, ["image_3", "image_1"], "k")] == ["image_3", "image_1"]
    with pytest.raises(InputError, match="embedded.examples.captions: no validation image 'imag_1'.* image_1"):
        select_examples(rows, ["imag_1"], "embedded.examples.captions")


def test_short_names_of_vits():
    assert short_name("data/checkpoints/vit_scenes/model.safetensors") == "vit_scenes"
    assert short_name("vit_small_patch16_224.dino") == "vit_small_patch16_224_dino"
    names = [short_name(source) for source in ("a/x.safetensors", "a/y.safetensors", "model.safetensors")]
    assert names == ["a_x", "a_y", "model"]


# Position embeddings


def test_position_embeddings_exclude_the_class_token_and_can_be_resampled(backbone):
    native = position_grid(backbone.vit)
    assert native.shape == (5, 5, 24)
    assert torch.equal(native[2, 3], backbone.vit.pos_embed[0, 1 + 2 * 5 + 3])
    assert position_grid(backbone.vit, (3, 7)).shape == (3, 7, 24)
    assert torch.equal(position_grid(backbone.vit, (5, 5)), native)


def test_cosine_similarity_by_hand():
    similarity = cosine_similarity(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [1.0, 1.0]]]))
    assert similarity.shape == (2, 2, 2, 2)
    assert similarity[0, 0, 1, 0] == pytest.approx(-1)
    assert similarity[0, 1, 1, 1] == pytest.approx(0.5**0.5)
    itself = similarity.reshape(4, 4).diagonal()
    torch.testing.assert_close(itself, torch.ones_like(itself))


def test_smooth_embeddings_have_grid_structure():
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    waves = torch.stack([f(0.4 * side) for f in (torch.sin, torch.cos) for side in (y, x)], -1)
    structure = grid_structure(cosine_similarity(waves))
    assert structure["neighbors"] == 100
    assert structure["rank_correlation"] < -0.9
    neighbor_pairs = 2 * (3 * 6 + 4 * 5 + 2 * 3 * 5)  # vertical, horizontal and diagonal, in both directions
    assert structure["by_chance"] == pytest.approx(100 * neighbor_pairs / (24 * 23))


def test_vits_without_position_embeddings_are_recognized(backbone):
    assert has_positions(backbone.vit)
    assert not has_positions(VisionTransformer(embed_dim=24, depth=1, num_heads=3, pos_embed="none"))


def test_a_requested_grid_that_is_the_vits_own_is_plotted_once(backbone, tmp_path):
    pictures = plot_vit("folder/model.safetensors", backbone, [(5, 5), (3, 4)], tmp_path)
    assert {grid: path.name for grid, path in pictures.items()} == {"5x5": "folder_5x5.png", "3x4": "folder_3x4.png"}


def test_position_similarities_are_plotted_as_a_grid_of_grids(tmp_path):
    similarity = torch.full((3, 4, 3, 4), -1.0)  # the darkest color
    similarity[0, 0] = 1  # the small grid at the top left in the brightest color
    plot_positions(tmp_path / "p.png", similarity, "t")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    yellow = (np.abs(pixels - (253, 231, 37)) < 3).all(-1)
    purple = (np.abs(pixels - (68, 1, 84)) < 3).all(-1)
    assert yellow.sum() == pytest.approx(purple.sum() / 11, rel=0.1)  # one small grid against eleven


# Captions


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder, sharp=5.0)
    return str(folder)


def token_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_a_words_attention_is_that_of_the_step_that_generated_it(source):
    decoder = blip.load_decoder(source)
    tokenizer = blip.load_tokenizer(source)
    states = torch.randn(2, 101, 32)
    captions = ("a picture of a red seven", "a picture of one")
    texts = [[decoder.config.bos_token_id, *token_ids(tokenizer, caption)] for caption in captions]
    texts[1].append(decoder.config.sep_token_id)
    for layer, head in ((-1, "mean"), (0, 1)):
        attention = generated_token_attention(BlipDecoder(decoder), states, texts, 4, layer, head)
        assert [len(tokens) for tokens in attention] == [3, 2]
        for image, text in enumerate(texts):
            for position in range(4, len(text)):
                tokens_read = torch.tensor([text[:position]])  # before the step that generates `position`
                step = decoder(tokens_read, encoder_hidden_states=states[image : image + 1], output_attentions=True)
                weights = step.cross_attentions[layer][0, :, -1]
                expected = weights.mean(0) if head == "mean" else weights[head]
                torch.testing.assert_close(attention[image][position - 4], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"attention.captions.layer = 2: there are 2 layers"):
        generated_token_attention(BlipDecoder(decoder), states, texts, 4, 2, "mean")
    with pytest.raises(InputError, match=r"attention.captions.head = 4: there are 4 heads"):
        generated_token_attention(BlipDecoder(decoder), states, texts, 4, 0, 4)


def test_the_last_word_is_the_end_unless_the_caption_was_cut_off(source):
    params = CaptionAttention(cell="greedy", layer=-1, head="mean", also=None)
    tokenizer = blip.load_tokenizer(source)
    captioner = Captioner(source, BlipDecoder(blip.load_decoder(source)), tokenizer)
    captions = [token_ids(tokenizer, "red red"), token_ids(tokenizer, "red red red red")]
    states = torch.randn(2, 1, 101, 32)
    complete, cut_off = extract_words(captioner, params, states, token_ids(tokenizer, "a"), captions, max_length=6)
    assert [word.text for word in complete] == ["red", "red", END]
    assert [word.text for word in cut_off] == ["red", "red", "red", "red"]
    assert complete[0].patch_attention.shape == (10, 10)
    assert complete[0].weights.sum() == pytest.approx(1, abs=1e-4)


class WordPieceTokenizer:
    """The part of a word piece tokenizer that `merge_word_pieces` uses."""

    sep_token_id = 9

    def convert_ids_to_tokens(self, ids):
        pieces = {1: "a", 2: "skate", 3: "##board", 4: "##er", 9: "[SEP]"}
        return [pieces[token] for token in ids]


def test_attention_of_word_pieces_is_summed():
    words = merge_word_pieces(WordPieceTokenizer(), [1, 2, 3, 4, 9], torch.eye(5), (2, 2))
    assert [word.text for word in words] == ["a", "skateboarder", END]
    assert words[1].weights.tolist() == [0, 1, 1, 1, 0]
    (rest,) = merge_word_pieces(WordPieceTokenizer(), [3, 4], torch.eye(2), (1, 2))  # of the prompt's last word
    assert rest.text == "boarder"


@pytest.mark.parametrize(("cell", "expected"), [("greedy", [1, 2]), ("k50_t1", [3, 4])])
def test_captions_are_those_of_the_first_seed_up_to_the_end_token(tmp_path, monkeypatch, cell, expected):
    experiment = load_experiment(ROOT / "params.yaml")
    attention = experiment.attention.model_copy(
        update={"captions": CaptionAttention(cell=cell, layer=-1, head=0, also=None)}
    )
    captioning = experiment.captioning.model_copy(update={"seeds": [7, 1]})
    experiment = experiment.model_copy(update={"attention": attention, "captioning": captioning})
    monkeypatch.chdir(tmp_path)
    PREDICTIONS.parent.mkdir(parents=True)
    rows = [("greedy", None, [1, 2]), ("k50_t1", 1, [5]), ("k50_t1", 7, [3, 4, 9, 6]), ("k50_t07", 7, [8])]
    table = [{"cell": cell, "seed": seed, "image_id": "a", "tokens": tokens} for cell, seed, tokens in rows]
    pq.write_table(pa.Table.from_pylist(table), PREDICTIONS)
    assert caption_attention.read_tokens(experiment, end=9) == {"a": expected}


def scene_object(name, color):
    return SceneObject(name, color, "large", 10.0, 0.0, 0.0, 0.0)


def test_referents_of_a_scenes_caption():
    words = ["a", "red", "disc", "above", "a", "blue", "seven", END]
    seven = CLASSES.index("seven")
    circle = CLASSES.index("circle")
    other = Referent("other")
    referents = referents_in_scene(words, (scene_object("circle", "red"), scene_object("seven", "pink")))
    assert referents == [
        *(other, Referent("color", circle), Referent("class", circle), other),
        *(other, Referent("color", seven), Referent("class", seven), Referent("end")),
    ]
    without_seven = referents_in_scene(words, (scene_object("circle", "red"),))
    assert without_seven[5:7] == [None, None]


def test_referents_by_the_names_of_classes():
    classes = ("background", "Cat", "dog")
    assert referents_by_class_name(["A", "Dog", "background", "cat", END], classes, {0, 2, 255}) == [
        *(Referent("other"), Referent("class", 2), Referent("other")),
        *(None, Referent("end")),
    ]


def test_attention_of_words_on_their_objects_by_hand(tmp_path):
    mask = np.zeros((4, 4))
    mask[:2, :2] = 1
    mask[2:, 2:] = 2
    mask[0, 3] = 255
    write_mask(tmp_path / "m.png", mask)
    words = [
        Word("one", torch.tensor([0.2, 0.8, 0.0, 0.0, 0.0]), (2, 2)),
        Word("two", torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5]), (2, 2)),
        Word("three", torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]), (2, 2)),
        Word(END, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]), (2, 2)),
    ]
    referents = [Referent("class", 1), Referent("class", 2), None, Referent("end")]
    row = Row("i", "val", "i.png", str(tmp_path / "m.png"))
    first, second, end = caption_attention.measure_words(row, words, referents, background=0)
    # Weights are float32, so sums of four of them are exact to about 1e-7.
    assert (first["mass"], first["class_token"]) == pytest.approx((100, 20))
    assert first["area"] == second["area"] == pytest.approx(100 * 4 / 15)
    uniform = 100 * 0.25 / (1 - 0.25 / 4)  # the third word's mass, without that on the void pixel
    assert first["other_words_mass"] == pytest.approx((50 + uniform + 0) / 3)
    assert second["mass"] == pytest.approx(50)
    assert (end["mass"], end["area"], end["kind"]) == (0, pytest.approx(100 * 8 / 15), "end")
    assert len(caption_attention.measure_words(row, words, referents, background=None)) == 2
    metrics = caption_attention.compute_metrics([first, second, end], seed=0)
    assert (metrics["class_count"], metrics["class_mass"], metrics["images"]) == (2, pytest.approx(75), 1)
    assert "color_mass" not in metrics
    (single,) = caption_attention.measure_words(row, words[:1], referents[:1], background=0)
    assert single["other_words_mass"] is None
    assert caption_attention.compute_metrics([single, second], seed=0)["class_count"] == 1
