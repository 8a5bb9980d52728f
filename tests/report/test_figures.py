"""Names, prompts and captions appear in figures as they are, and no figure fails because of what they hold."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from stages.attention.panels import Panel, plot_positions, plot_rows
from stages.core.figures import figure
from stages.core.runs import Run
from stages.core.train_state import TrainState
from stages.data.manifest import Row
from stages.pretraining.card import plot_curve
from stages.report.confusion_matrix import plot_confusion_matrix
from stages.report.contact_sheets import plot_captions, plot_mistakes, plot_retrieved
from stages.report.curves import plot_accuracy, plot_bleu, plot_class_iou, plot_miou, plot_recall
from stages.report.overlays import plot_masks
from stages.report.results import Result, group_seeds
from stages.retrieval.search import draw_captions, draw_images
from stages.tracking.registration import read_records

# Each name with what a figure shows of it.
NAMES = {
    r"$\frac{1}{2$ $^$ \$6 {0}": r"$\frac{1}{2$ $^$ \$6 {0}",
    # The last two are a lone surrogate, which no font can draw, and a character that reverses the reading direction.
    "_a\nb\r\n\x0bc\x1b\ud800\u202e": r"_a b c\x1b\ud800\u202e",
    "\u4e2d\u6587 \U0001f600": "\u4e2d\u6587 \U0001f600",  # no glyph in the font
}
LONG = "x" * 10_000
HEIGHT, WIDTH = 20, 24


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The texts of all figures that are written. Every warning is an error."""
    texts = []
    save = Figure.savefig

    def collect(fig, *args, **settings):
        save(fig, *args, **settings)
        texts.extend(text.get_text() for text in fig.findobj(Text) if text.get_visible())

    monkeypatch.setattr(Figure, "savefig", collect)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield texts


def check_figure(path, drawn, name):
    """The figure exists, has a usual size, and shows the name."""
    with Image.open(path) as image:
        assert max(image.size) < 4000
    assert any(NAMES[name] in text for text in drawn), drawn


def result(task, name, metrics=None, params=None, **fields) -> Result:
    metrics = metrics or {"miou": 50.0}
    runs = [Run(task, name, task, params or {}, metrics, seed=seed, **fields) for seed in (1, 2)]
    return group_seeds(runs, read_records(runs))[0]


def image_row(tmp_path, image_id="a") -> Row:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(path)
    return Row(image_id, "val", str(path), height=HEIGHT, width=WIDTH)


every_name = pytest.mark.parametrize("name", NAMES, ids=("formula", "controls", "glyphs"))


@every_name
def test_curves(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    history = [{"epoch": epoch, "miou": 50.0, "iou": {name: 50.0, "background": None}} for epoch in (1, 2)]
    head = result("segmentation", "linear", history=history)
    plot_miou(path, {name: head, "other": head})
    check_figure(path, drawn, name)
    drawn.clear()
    plot_class_iou(path, "label", head.run)
    check_figure(path, drawn, name)
    drawn.clear()
    plot_class_iou(path, name, head.run)
    check_figure(path, drawn, name)
    drawn.clear()
    metrics = {"image_to_text_r_at_1": 50.0}
    history = [{"epoch": 1, "image_to_text_r_at_1": 50.0}]
    trained = result("retrieval_grid", "mine", metrics=metrics, history=history)
    plot_recall(path, {name: trained, f"{name} too": result("retrieval", "provided", metrics=metrics)})
    check_figure(path, drawn, name)
    drawn.clear()
    history = [{"epoch": 1, "accuracy": 50.0, "train_loss": 1.0, "val_loss": 2.0}]
    details = {"confusion": [[1, 0], [0, 1]]}
    setting = name.replace("\ud800", "")  # DataFrames with the names of runs refuse it
    plot_accuracy(path, [result("classification", setting, {"accuracy": 50.0}, history=history, details=details)])
    assert len(drawn) > 10


@every_name
def test_bleu_by_prompt(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    cells = []
    for index, prompt in enumerate((name, name, f"{name} of")):
        params = {"type": "top_k", "k": 5, "temperature": 0.5 + index, "prompt": prompt}
        cells.append((result("captioning", f"k{index}", metrics={"bleu": 5.0}, params=params), (4.0, 6.0)))
    greedy = {"type": "greedy", "prompt": name}
    cells.append((result("captioning", "greedy", metrics={"bleu": 5.0}, params=greedy), (4.0, 6.0)))
    plot_bleu(path, cells)
    for words in ('prompt "{}"', 'K = 5, "{} of"', 'greedy, "{}"'):
        assert any(words.format(NAMES[name]) in text for text in drawn)
    assert {"0.5", "1.5", "2.5"} <= set(drawn)  # ticks of a log scale without mathtext


@every_name
def test_contact_sheets(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    row = image_row(tmp_path)
    plot_captions(path, (row,), {"greedy": {"a": (f"{name}", "a picture")}})
    check_figure(path, drawn, name)
    drawn.clear()
    plot_captions(path, (row,), {f'greedy, "{name}"': {"a": ("a picture", "a picture")}})
    check_figure(path, drawn, name)
    drawn.clear()
    query = {"image_id": "a", "caption": name, "nearest": ["a"], "text_to_image_rank": 1}
    plot_retrieved(path, "provided", (row,), [query])
    check_figure(path, drawn, name)
    drawn.clear()
    prediction = {"image_id": "a", "label": name, "predicted": "other", "probabilities": [0.3, 0.7]}
    assert plot_mistakes(path, "base", (row,), [prediction]) == 1
    check_figure(path, drawn, name)


@every_name
def test_masks_and_confusion(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    row = image_row(tmp_path)
    masks = {"a": np.ones((HEIGHT, WIDTH), np.uint8)}
    plot_masks(path, "label", (row,), masks, {"prediction": masks, name: masks}, ("background", name))
    check_figure(path, drawn, name)
    drawn.clear()
    details = {"confusion": [[1, 0], [1, 1]]}
    plot_confusion_matrix(path, result("classification", "base", details=details), (name, "other"))
    check_figure(path, drawn, name)


@every_name
def test_attention(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    image = Image.new("RGB", (WIDTH, HEIGHT))
    attention = torch.rand(3, 4)
    plot_rows(path, [(image, "image\n", [Panel(f"{name}\nmass 1 %", attention)])], "title", shared_scale=True)
    assert any(NAMES[name].split()[0] in text for text in drawn)
    drawn.clear()
    plot_rows(path, [(image, "image", [Panel("word", attention)] * 6)], f'a: "{name}"', shared_scale=False)
    assert any(NAMES[name].split()[0] in text for text in drawn)
    drawn.clear()
    plot_positions(path, torch.rand(3, 3, 3, 3), f"Position embeddings of {name}")
    check_figure(path, drawn, name)


@every_name
def test_search(tmp_path, drawn, name):
    path = tmp_path / "a.png"
    row = image_row(tmp_path)
    draw_images(path, name, [(0.5, name)], {name: Path(row.image)})
    check_figure(path, drawn, name)
    drawn.clear()
    draw_captions(path, Image.new("RGB", (WIDTH, HEIGHT)), [(0.5, name)])
    check_figure(path, drawn, name)


def test_long_names_leave_room_for_the_plot(tmp_path, drawn):
    row = image_row(tmp_path)
    history = [{"epoch": 1, "miou": 50.0, "iou": {LONG: 50.0}}]
    details = {"confusion": [[1, 0], [1, 1]]}
    head = result("segmentation", LONG, history=history, details=details)
    masks = {"a": np.ones((HEIGHT, WIDTH), np.uint8)}
    prediction = {"image_id": "a", "label": LONG, "predicted": LONG, "probabilities": [0.3, 0.7]}
    plot_miou(tmp_path / "1.png", {LONG: head})
    plot_class_iou(tmp_path / "2.png", LONG, head.run)
    plot_masks(tmp_path / "3.png", LONG, (row,), masks, {LONG: masks}, ("background", LONG))
    plot_confusion_matrix(tmp_path / "4.png", head, (LONG, "other"))
    plot_mistakes(tmp_path / "5.png", LONG, (row,), [prediction])
    plot_captions(tmp_path / "6.png", (row,), {f'greedy, "{LONG}"': {"a": (LONG, LONG)}})
    draw_images(tmp_path / "7.png", LONG, [(0.5, LONG)], {LONG: Path(row.image)})
    draw_captions(tmp_path / "8.png", Image.new("RGB", (WIDTH, HEIGHT)), [(0.5, LONG)])
    assert all(len(text) < 400 for text in drawn)
    assert any("x" * 20 in text for text in drawn)


def test_a_training_curve(tmp_path):
    state = TrainState(curve=[{"images": 1000, "loss": 1.0, "miou": 0.5}])
    plot_curve(tmp_path / "a.png", state, "held-out mIoU", ["miou"])


def test_a_missing_glyph_is_drawn_as_a_box(tmp_path):
    for name, text in (("a", "\u4e2d"), ("b", "\u6587"), ("c", " ")):
        with figure(tmp_path / f"{name}.png", figsize=(6.4, 4.8)) as (fig, _):
            fig.text(0.2, 0.5, text, fontsize=60)
    contents = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert contents[0] != contents[2]
