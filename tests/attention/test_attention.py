"""Maps are of the right patches, lie where they should, and are measured right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained_blip, write_mask
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from stages.attention import class_attention, short_name
from stages.attention.attention_share import compute_attention_share
from stages.attention.caption_attention import Reader, measured, metrics_of
from stages.attention.class_token import AttentionMaps, class_token_attention, resize_to_patches
from stages.attention.examples import select_examples
from stages.attention.maps import (
    area,
    attention_mass,
    check_rows,
    class_token_maps,
    density,
    peak_pixel,
    relative,
    resolve_index,
    rollout,
    upsampled,
)
from stages.attention.panels import Panel, draw_positions, draw_rows, overlay
from stages.attention.position_similarity import draw_source
from stages.attention.positions import has_positions, position_grid, similarity, structure
from stages.attention.word_referents import Referent, referents_by_class_name, referents_in_scene
from stages.attention.words import END, Word, attended, words_of
from stages.captioning.captioner import Captioner
from stages.captioning.text_decoders import BlipDecoder
from stages.core.stage import InputError
from stages.data.manifest import Row
from stages.data.scenes.scene import CLASSES, SceneObject
from stages.models import blip, vit
from stages.params.attention import CaptionAttention


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return vit.Backbone(vit.build(vit.Architecture(side=40, dim=24, depth=3, heads=3, stem=(8, 8, 8, 8))))


def at(rows: int, columns: int, row: int, column: int) -> torch.Tensor:
    """A map with everything on one patch."""
    one = torch.zeros(rows, columns)
    one[row, column] = 1
    return one


def test_rows_that_do_not_sum_to_one_are_refused():
    assert check_rows(torch.tensor([[0.25, 0.75]])).shape == (1, 2)
    with pytest.raises(ArithmeticError, match="off by 0.1"):
        check_rows(torch.tensor([[0.5, 0.6]]))
    with pytest.raises(ArithmeticError, match="off by nan"):
        check_rows(torch.tensor([[torch.nan, 0.6]]))


@pytest.mark.parametrize("prefix", [1, 5])
def test_the_class_tokens_map_leaves_prefix_tokens_out_and_keeps_the_grid(prefix):
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
    # half of each and half the identity: [.6 .4 0 | 0 1 0 | .25 0 .75], then [.5 0 .5 | 0 1 0 | 0 0 1] before it
    found = rollout([first, second], 1, (1, 2))
    torch.testing.assert_close(found, torch.tensor([[[0.5 * 0.4, 0.5 * 0.75]]]))


@pytest.mark.parametrize("size", [(40, 40), (40, 72), (24, 40)])
def test_maps_of_an_image_of_any_shape(backbone, size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    (seen,) = class_token_attention(backbone, [pixels], -1, roll=True)
    grid = (size[0] // 8, size[1] // 8)
    assert seen.heads.shape == (3, *grid)
    assert seen.rollout.shape == seen.mean.shape == grid
    whole = backbone.attention(pixels[None])[0, :, 0, 1:].unflatten(-1, grid)
    torch.testing.assert_close(seen.heads, whole)


def test_a_block_that_is_not_there_is_named(backbone):
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"attention.class_token.block = 3: there are 3 blocks, 0 to 2"):
        class_token_attention(backbone, [pixels], 3, roll=False)
    assert [resolve_index(3, one, "k", "w") for one in (0, 2, -1, -3)] == [0, 2, 2, 0]


def test_an_image_becomes_whole_patches_of_its_own_shape():
    assert resize_to_patches(Image.new("RGB", (320, 240)), 80, (8, 8)).shape == (3, 80, 104)
    assert resize_to_patches(Image.new("RGB", (50, 200)), 80, (16, 16)).shape == (3, 320, 80)
    same = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 88, 3), dtype=np.uint8))
    assert np.array_equal(resize_to_patches(same, 80, (8, 8)).permute(1, 2, 0).numpy(), np.asarray(same))


@pytest.mark.parametrize(("size", "grid"), [((60, 100), (3, 5)), ((61, 98), (3, 5)), ((80, 80), (10, 10))])
def test_attention_on_a_known_patch_is_there_in_the_overlay(size, grid):
    row, column = grid[0] - 1, 1
    painted = overlay(np.full((*size, 3), 128, np.uint8), at(*grid, row, column), top=1.0)
    assert painted.shape == (*size, 3)
    red = painted[..., 0] - painted[..., 2]
    y, x = np.unravel_index(red.argmax(), size)
    assert row * size[0] / grid[0] <= y < (row + 1) * size[0] / grid[0]
    assert column * size[1] / grid[1] <= x < (column + 1) * size[1] / grid[1]
    far = painted[: size[0] // grid[0] // 2, -size[1] // grid[1] :]
    assert (far[..., 2] > far[..., 0]).all()  # blue where there is none


def test_the_overlay_of_a_drawn_picture_lies_on_its_image(tmp_path):
    """Through the picture itself: the red spot lies where its patch is in the blue panel."""
    image = Image.new("RGB", (50, 30), (128, 128, 128))
    draw_rows(tmp_path / "p.png", [(image, "image", [Panel("map", at(3, 5, 2, 1))])], "t", shared=True)
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    pixels = pixels[:, : int(0.85 * pixels.shape[1])]  # without the color bar
    bluer = pixels[..., 2] - pixels[..., 0]
    rows, columns = (np.flatnonzero((bluer > 60).any(axis)) for axis in (1, 0))
    down, across = np.argwhere(bluer < -60).mean(0) - (rows[0], columns[0])
    assert 2 / 3 < down / (rows[-1] - rows[0]) < 1
    assert 1 / 5 < across / (columns[-1] - columns[0]) < 2 / 5


def test_stretched_maps_keep_their_value_at_the_patches_middle():
    wide = upsampled(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), (6, 6))
    assert wide[1, 1] == pytest.approx(0.0, abs=1e-6)
    assert wide[4, 4] == pytest.approx(3.0)
    assert upsampled(torch.rand(2, 3, 4, 5), (8, 10)).shape == (2, 3, 8, 10)
    assert relative(torch.tensor([[1.0, 3.0]])).tolist() == [[0.5, 1.5]]


def test_mass_and_area_by_hand():
    spread = density(np.array([[0.1, 0.2], [0.3, 0.4]]), (4, 4))
    assert spread.sum() == pytest.approx(1)
    assert spread[0, 3] == pytest.approx(0.05)
    inside = np.zeros((4, 4), bool)
    inside[2:, 3] = True  # half of the patch with .4
    every = np.ones((4, 4), bool)
    assert attention_mass(spread, inside, every) == pytest.approx(20)
    assert area(inside, every) == pytest.approx(12.5)
    counted = every.copy()
    counted[:2] = False  # void: .3 of the mass and half of the pixels
    assert attention_mass(spread, inside, counted) == pytest.approx(100 * 0.2 / 0.7)
    assert area(inside, counted) == pytest.approx(25)


def test_a_map_is_spread_over_sides_that_are_no_multiple():
    spread = density(np.array([[1.0, 3.0]]), (2, 5))
    assert spread.sum() == pytest.approx(1)
    assert spread[:, :2].sum() == pytest.approx(0.25)  # the middle column's center is on the border, and goes right


def test_shares_by_hand_and_even_attention_is_one_time():
    share = compute_attention_share(
        np.array([30.0, 50.0, 10.0]), np.array([10.0, 20.0, 30.0]), np.array([0, 0, 1]), seed=1
    )
    assert (share.mass, share.area, share.times, share.count) == (30.0, 20.0, 1.5, 3)
    assert share.mass_low <= 30 <= share.mass_high
    assert (share.mass_low, share.mass_high) == (10.0, 40.0)  # one image alone, drawn twice
    even = compute_attention_share(np.array([10.0, 20.0]), np.array([10.0, 20.0]), np.array([0, 1]), seed=1)
    assert (even.times, even.times_low, even.times_high) == (1.0, 1.0, 1.0)


# Position embeddings


def test_positions_leave_the_class_token_out_and_can_be_resampled(backbone):
    own = position_grid(backbone.vit)
    assert own.shape == (5, 5, 24)
    assert torch.equal(own[2, 3], backbone.vit.pos_embed[0, 1 + 2 * 5 + 3])
    assert position_grid(backbone.vit, (3, 7)).shape == (3, 7, 24)
    assert torch.equal(position_grid(backbone.vit, (5, 5)), own)


def test_similarity_by_hand_and_a_grid_that_shows():
    alike = similarity(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [1.0, 1.0]]]))
    assert alike.shape == (2, 2, 2, 2)
    assert alike[0, 0, 1, 0] == pytest.approx(-1)
    assert alike[0, 1, 1, 1] == pytest.approx(0.5**0.5)
    assert torch.allclose(alike.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1), torch.ones(2, 2).double())
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    waves = torch.stack([f(0.4 * side) for f in (torch.sin, torch.cos) for side in (y, x)], -1)
    found = structure(similarity(waves))
    assert found.neighbors == 100
    assert found.rank_correlation < -0.9
    pairs = 2 * (3 * 6 + 4 * 5 + 2 * 3 * 5)  # beside, above and across, both ways
    assert found.by_chance == pytest.approx(100 * pairs / (24 * 23))


def test_a_vit_without_position_embeddings_is_known(backbone):
    assert has_positions(backbone.vit)
    assert not has_positions(VisionTransformer(embed_dim=24, depth=1, num_heads=3, pos_embed="none"))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_vits_with_register_tokens(no_embed_class):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    registers = VisionTransformer(**settings, reg_tokens=4, no_embed_class=no_embed_class, dynamic_img_size=True)
    grid = position_grid(registers)
    prefix = 0 if no_embed_class else 5
    assert torch.equal(grid[1, 2], registers.pos_embed[0, prefix + 1 * 4 + 2])
    backbone, pixels = vit.Backbone(registers), torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    (seen,) = class_token_attention(backbone, [pixels], 0, roll=True)
    assert seen.heads.shape == (3, 4, 6)
    assert torch.allclose(seen.heads, backbone.attention(pixels[None], 0)[0, :, 0, 5:].unflatten(-1, (4, 6)))


def test_a_grid_that_is_the_vits_own_is_drawn_once(backbone, tmp_path):
    made = draw_source("folder/model.safetensors", backbone, [None, (5, 5), (3, 4)], tmp_path)
    assert {size: path.name for size, path in made.items()} == {"5x5": "folder_5x5.png", "3x4": "folder_3x4.png"}


def test_the_sheet_of_positions_is_drawn(tmp_path):
    draw_positions(tmp_path / "p.png", torch.rand(3, 4, 3, 4) * 2 - 1, "t")
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert short_name("data/checkpoints/vit_scenes/model.safetensors") == "vit_scenes"
    assert short_name("vit_small_patch16_224.dino") == "vit_small_patch16_224_dino"
    names = [short_name(source) for source in ("a/x.safetensors", "a/y.safetensors", "model.safetensors")]
    assert names == ["a_x", "a_y", "model"]


# Captions


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    untrained_blip(folder, sharp=5.0)
    return str(folder)


def test_a_words_attention_is_that_of_the_step_that_wrote_it(source):
    decoder, tokenizer = blip.load_decoder(source), blip.load_tokenizer(source)
    states = torch.randn(2, 101, 32)
    spelt = [
        tokenizer(text, add_special_tokens=False).input_ids for text in ("a picture of a red seven", "a picture of one")
    ]
    texts = [[decoder.config.bos_token_id, *one] for one in spelt]
    texts[1].append(decoder.config.sep_token_id)
    for layer, head in ((-1, "mean"), (0, 1)):
        found = attended(BlipDecoder(decoder), states, texts, 4, layer, head)
        assert [len(one) for one in found] == [3, 2]
        for image, text in enumerate(texts):
            for place in range(4, len(text)):
                read = torch.tensor([text[:place]])  # what the step had read when it wrote token `place`
                step = decoder(read, encoder_hidden_states=states[image : image + 1], output_attentions=True)
                weights = step.cross_attentions[layer][0, :, -1]
                expected = weights.mean(0) if head == "mean" else weights[head]
                torch.testing.assert_close(found[image][place - 4], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"attention.captions.layer = 2: there are 2 layers"):
        attended(BlipDecoder(decoder), states, texts, 4, 2, "mean")
    with pytest.raises(InputError, match=r"attention.captions.head = 4: there are 4 heads"):
        attended(BlipDecoder(decoder), states, texts, 4, 0, 4)


def test_the_end_has_a_panel_unless_the_caption_was_cut_off(source):
    asked = CaptionAttention(cell="greedy", layer=-1, head="mean")
    tokenizer = blip.load_tokenizer(source)
    reader = Reader(Captioner(source, BlipDecoder(blip.load_decoder(source)), tokenizer), asked)
    prompt, red = (tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "red red"))
    whole, cut = reader.words(torch.randn(2, 1, 101, 32), prompt, [red, red * 2], longest=6)
    assert [word.text for word in whole] == ["red", "red", END]
    assert [word.text for word in cut] == ["red", "red", "red", "red"]
    assert whole[0].on_patches.shape == (10, 10)
    assert whole[0].weights.sum() == pytest.approx(1, abs=1e-4)


class Pieces:
    """A tokenizer of word pieces, as far as `words_of` asks."""

    sep_token_id = 9

    def convert_ids_to_tokens(self, ids):
        return [{1: "a", 2: "skate", 3: "##board", 4: "##er", 9: "[SEP]"}[one] for one in ids]


def test_word_pieces_are_merged_by_summing():
    words = words_of(Pieces(), [1, 2, 3, 4, 9], torch.eye(5), (2, 2))
    assert [word.text for word in words] == ["a", "skateboarder", END]
    assert words[1].weights.tolist() == [0, 1, 1, 1, 0]


def thing(name, color):
    return SceneObject(name, color, "large", 10.0, 0.0, 0.0, 0.0)


def test_what_the_words_of_a_scenes_caption_are_about():
    words = ["a", "red", "disc", "above", "a", "blue", "seven", END]
    seven, circle = CLASSES.index("seven"), CLASSES.index("circle")
    about = referents_in_scene(words, (thing("circle", "red"), thing("seven", "pink")))
    other, end = Referent("other"), Referent("end")
    assert about == [
        *(other, Referent("color", circle), Referent("class", circle), other),
        *(other, Referent("color", seven), Referent("class", seven), end),
    ]
    assert referents_in_scene(words, (thing("circle", "red"),))[5:7] == [None, None]  # there is no seven


def test_what_words_are_about_by_the_classes_names():
    classes = ("background", "Cat", "dog")
    assert referents_by_class_name(["A", "Dog", "background", "cat", END], classes, {0, 2, 255}) == [
        *(Referent("other"), Referent("class", 2), Referent("other")),
        *(None, Referent("end")),
    ]


def test_words_are_held_against_their_objects(tmp_path):
    mask = np.zeros((4, 4))
    mask[:2, :2], mask[2:, 2:], mask[0, 3] = 1, 2, 255
    write_mask(tmp_path / "m.png", mask)
    words = [
        Word("one", torch.tensor([0.2, 0.8, 0.0, 0.0, 0.0]), (2, 2)),
        Word("two", torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5]), (2, 2)),
        Word("three", torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]), (2, 2)),
        Word(END, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]), (2, 2)),
    ]
    about = [Referent("class", 1), Referent("class", 2), None, Referent("end")]
    row = Row("i", "val", "i.png", str(tmp_path / "m.png"))
    one, two, end = measured(row, words, about, background=0)
    assert (one["mass"], one["class_token"]) == (pytest.approx(100), pytest.approx(20))
    assert one["area"] == two["area"] == pytest.approx(100 * 4 / 15)
    even = 100 * 0.25 / (1 - 0.25 / 4)  # the void pixel of the even word is not counted
    assert one["others"] == pytest.approx((50 + even + 0) / 3)
    assert two["mass"] == pytest.approx(50)
    assert (end["mass"], end["area"], end["kind"]) == (0, pytest.approx(100 * 8 / 15), "end")
    assert len(measured(row, words, about, background=None)) == 2
    metrics = metrics_of([one, two, end], seed=0)
    assert (metrics["class_count"], metrics["class_mass"], metrics["images"]) == (2, pytest.approx(75), 1)
    assert "color_mass" not in metrics
    alone = measured(row, words[:1], about[:1], background=0)  # a caption of one word has no others
    assert alone[0]["others"] is None
    assert metrics_of([*alone, two], seed=0)["class_count"] == 1


def test_the_class_tokens_share_of_an_object(tmp_path):
    mask = np.zeros((6, 6))
    mask[:3, 3:], mask[0, 3] = 4, 255
    write_mask(tmp_path / "m.png", mask)
    row = Row("i", "val", "i.png", str(tmp_path / "m.png"))
    heads = torch.stack([at(2, 2, 0, 1), at(2, 2, 1, 0)])  # half on the object, half in the other corner
    found = class_attention.measured(row, AttentionMaps(heads, at(2, 2, 0, 1)), background=0)
    assert found["area"] == pytest.approx(100 * 8 / 35)
    assert found["mean_mass"] == pytest.approx(100 * (0.5 * 8 / 9) / (1 - 0.5 / 9))  # a ninth of a patch is void
    assert found["rollout_mass"] == pytest.approx(100)
    assert found["hit"] == 100  # of two equal patches the first
    away = class_attention.measured(row, AttentionMaps(heads[1:], None), background=0)
    assert (away["mean_mass"], away["hit"], "rollout_mass" in away) == (0, 0, False)
    metrics = class_attention.metrics_of([found, {**found, "hit": 0.0}], seed=0)
    assert (metrics["hit"], metrics["mean_count"], metrics["images"]) == (50, 2, 2)
    assert metrics["mean_times"] == pytest.approx(found["mean_mass"] / found["area"])


@pytest.mark.parametrize(("size", "expected"), [((2, 5), (1, 3)), ((8, 8), (4, 6))])
def test_the_middle_of_the_patch_that_gets_most(size, expected):
    """The larger weight wins, however many pixels its patch covers."""
    assert peak_pixel(torch.tensor([[0.45, 0.55]]), size) == expected


def test_images_are_shown_by_name_or_by_number():
    rows = tuple(Row(f"image_{index}", "val", f"{index}.png") for index in range(5))
    assert [row.image_id for row in select_examples(rows, 3, "k")] == ["image_0", "image_2", "image_4"]
    assert [row.image_id for row in select_examples(rows, ["image_3", "image_1"], "k")] == ["image_3", "image_1"]
    with pytest.raises(InputError, match="embedded.examples.captions: no validation image 'imag_1'; there are image_1"):
        select_examples(rows, ["imag_1"], "embedded.examples.captions")


def test_pictures_of_many_heads_wrap_and_are_the_same_bytes(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    panels = [Panel(f"head {number}", torch.rand(3, 5)) for number in range(9)]
    for name in ("a.png", "b.png"):
        draw_rows(tmp_path / name, [(image, "image", panels)], "title", shared=False)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Path(tmp_path / "a.png").stat().st_size > 20000
