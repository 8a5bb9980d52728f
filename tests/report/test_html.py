"""The HTML page holds the report and the predictions, and nothing in it is loaded or run from elsewhere."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from PIL import Image
from sample_report import CAPTION, CLASSES, HEADS, LABELS, SCENES, write_report

from stages.report.html import browse, build_html
from stages.report.html.caption_score import score_captions
from stages.report.html.document import IdRegistry, parse_number, read_document
from stages.report.html.pictures import embed_figure, embed_mask, mask_palette


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_report(tmp_path)


class Page(HTMLParser):
    """A page's tags with their attributes, the texts by tag, and the embedded JSON."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.texts = {}
        self.open = ["document"]
        self.feed(html)
        self.json = json.loads(self.texts["script"][0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "hr", "input"):  # which have no end
            self.open.append(tag)

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1], []).append(data)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_loads_nothing(report):
    page = Page(build_html(*report))
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_only_the_pages_own_script_runs(report):
    html = build_html(*report)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2  # the data and the script
    script = page.texts["script"][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_names_are_text_in_html_and_json(report):
    page = Page(build_html(*report))
    assert any(CLASSES[1] in text for text in page.texts["h2"])
    assert HEADS[1] in page.texts["th"]
    assert CLASSES[2] in page.texts["th"]
    assert page.json["classes"] == list(CLASSES)
    assert page.json["labels"] == list(LABELS)
    assert page.json["views"]["segmentation"]["runs"][1] == HEADS[1]
    assert page.json["views"]["captioning"]["references"][0] == CAPTION


def test_tables_have_captions_row_headers_and_numbers_to_sort_by(report):
    page, _ = report
    (table,) = [block for block in read_document(page, IdRegistry()) if block.kind == "table"]
    assert table.caption.striptags() == "Table 1. Scores (* is the highest)"
    assert table.numeric == (False, True, True)
    assert [row[1].value for row in table.rows] == [9.5, 10.25, None, 0.001]
    assert [row[2].value for row in table.rows] == [None, 1.5, 2.0, None]


@pytest.mark.parametrize(
    ("text", "number"),
    [("20.00*", 20.0), ("59.40 to 61.03", 59.4), ("1e-3", 1e-3), ("+14.75", 14.75), ("-2", -2.0), ("78.67 (3)", 78.67)]
    + [(text, None) for text in ("-", "", "over 94", "88x88, augmented", "p = 0.9", "3b")],
)
def test_a_cells_number_is_the_one_that_it_starts_with(text, number):
    assert parse_number(text) == number


def test_a_table_sorts_unless_some_rows_belong_to_the_row_above():
    header = "| a | b |\n| --- | --- |\n"
    separate, grouped = read_document(
        f"{header}| x | 1 |\n| y | 2 |\n\ntext\n\n{header}| x | 1 |\n|  | 2 |", IdRegistry()
    )[::2]
    assert separate.sortable
    assert not grouped.sortable


def test_a_figure_has_its_caption_alt_text_and_size(report):
    page, _ = report
    (block,) = [block for block in read_document(page, IdRegistry()) if block.kind == "figures"]
    (figure,) = block.figures
    assert figure.caption == "(a) Score per epoch"
    assert figure.alt == "linear: Score per epoch"
    assert (figure.figure.width, figure.figure.height) == (400, 300)
    assert figure.figure.page_width == round(400 * 96 / 130)


def test_a_figure_becomes_webp_if_that_is_much_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert embed_figure(tmp_path / "a.png").source.startswith("data:image/webp;")
    Image.fromarray(noise[:, :, 0]).save(tmp_path / "b.png")  # incompressible in both formats
    assert embed_figure(tmp_path / "b.png").source.startswith("data:image/png;")


def test_headings_with_the_same_words_get_different_ids():
    headings = read_document("# Same\n\n## Same\n\n## Same!\n\n## \\*\n", IdRegistry(["main"]))
    assert [heading.id for heading in headings] == ["same", "same-2", "same-3", "section"]


def test_a_mask_has_its_classes_colors_and_white_void():
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    palette = mask_palette(("background", "star", "ring"))
    _, content = embed_mask(mask, palette).split(",")
    colors = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    assert colors[1, 1].tolist() == [255, 255, 255]
    assert colors[:, :].reshape(-1, 3)[:3].ravel().tolist() == list(palette[:9])


def test_iou_of_an_image_leaves_out_void_and_absent_classes(report):
    view = browse.build_browsing(report[1]).json["views"]["segmentation"]
    moved, right = (masks[1] for masks in view["predictions"])  # moved by one of ten columns
    assert right["iou"] == 100.0
    assert moved["class_iou"] == {0: pytest.approx(94.4, abs=0.1), 2: pytest.approx(81.8, abs=0.1)}
    assert moved["iou"] == pytest.approx(sum(moved["class_iou"].values()) / 2, abs=0.1)


def test_the_score_of_a_caption_is_nltks_smoothed_bleu():
    reference = "a large red ring to the left of a small blue star"
    captions = [
        reference,
        "a large red ring",
        "a small green star",
        "the left of a ring",
        "ring",
        "nothing else matches it",
    ]
    smoothing = SmoothingFunction().method2
    expected = [
        100 * sentence_bleu([reference.split()], caption.split(), smoothing_function=smoothing) for caption in captions
    ]
    assert score_captions(captions, [reference] * len(captions)) == pytest.approx(expected)
    assert score_captions([""], [reference])[0] == 0


def test_captions_are_those_of_the_cells_first_seed(report):
    view = browse.build_browsing(report[1]).json["views"]["captioning"]
    greedy, sampled = view["captions"]
    assert greedy["texts"] == [CAPTION] * SCENES
    assert greedy["scores"] == [100.0] * SCENES
    assert "of seed 2" not in sampled["texts"]
    assert sampled["scores"][0] == 100.0 > sampled["scores"][1] > sampled["scores"][4]


def test_a_larger_set_is_sampled_evenly_and_the_page_says_so(report, monkeypatch):
    monkeypatch.setattr(browse, "IMAGES", 5)
    monkeypatch.setattr(browse, "QUERIES", 2)
    html = re.sub(r"\s+", " ", build_html(*report))
    assert "5 of 12 validation images are included, spaced evenly." in html
    assert "2 of 12 validation images are included, spaced evenly." in html
    assert "5 of 8 validation images are included, spaced evenly." in html
    data = Page(html).json
    scenes = [scene["id"] for scene in data["scenes"]]
    assert scenes[:5] == ["scene_00", "scene_03", "scene_06", "scene_08", "scene_11"]
    queries = data["views"]["retrieval"]["images"]
    assert [scenes[index] for index in queries] == ["scene_00", "scene_11"]
    nearest = data["views"]["retrieval"]["ranks"][1]["nearest"][0]  # all are embedded, also those beyond the sample
    assert [scenes[index] for index in nearest] == ["scene_02", "scene_01", "scene_00", "scene_11", "scene_10"]


def test_skipped_tasks_give_their_reason(report):
    page, inputs = report
    results = {"segmentation": inputs.results["segmentation"]}
    skipped = {"captioning": "no captions", "retrieval": "no <captions>", "classification": "no labels"}
    html = build_html(page, replace(inputs, results=results, skipped=skipped))
    assert "Left out: no captions" in html
    assert "Left out: no &lt;captions&gt;" in html
    assert list(Page(html).json["views"]) == ["segmentation"]
    everything = dict.fromkeys(browse.TASKS, "nothing to do")
    html = build_html(page, replace(inputs, results={}, skipped=everything))
    assert "IoU per class" not in html
    assert Page(html).json["scenes"] == []


def test_cells_with_the_same_settings_are_told_apart(report):
    cell = report[1].results["captioning"][0]
    assert browse.unique_labels([cell, cell], lambda _: "same") == ["same (greedy)", "same (greedy)"]
