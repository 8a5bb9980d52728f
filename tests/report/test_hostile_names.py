"""The report, made from results with hostile names, prompts and texts, shows them as text in markdown and HTML."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt
from sample_report import metric

from stages.core.runs import Run
from stages.data.manifest import Manifest, Row
from stages.params.experiment import load_experiment
from stages.report import __main__ as report
from stages.report import backbones, captioning, classification, retrieval, segmentation
from stages.report.claims import evaluate_claims
from stages.report.html import document, page
from stages.report.html.browse import Browsing
from stages.report.html.pictures import Figure
from stages.report.markdown import Markdown, code, escape, join, prose
from stages.report.page import build_page
from stages.report.results import load_results
from stages.report.section import FIGURES, Inputs, render
from stages.report.tables import Table
from stages.retrieval import RECALL
from stages.tracking import registration

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "`code` ``` ~~~",
    "![t](http://x)",
    "[a](javascript:x)",
    "[a]: http://x",
    "<http://x>",
    "two\n\n# lines\r\n- three",
    "    indented",
    "$x$ $$y$$ __b__ *c* ~~d~~",
    "&lt;b&gt; &#60;i&#62; \\<u>",
    "\x1b[31mred\x00\u202e",
    "-->]]></code></p>|",
)
ALL = " ".join(HOSTILE)
DATA = "data:,"  # the address of every figure in the page


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def committed(monkeypatch):
    """Inputs from the committed records, with hostile text wherever a run takes it from data or params; no figures."""
    monkeypatch.chdir(ROOT)
    experiment = load_experiment()
    monkeypatch.setattr(registration, "register", lambda runs: None)
    names = report.expected_runs(experiment)
    skipped = dict.fromkeys((*report.skip_reasons(names), "caption_attention"), ALL)
    results, _ = load_results({task: runs for task, runs in names.items() if task not in skipped})
    rows = (Row("a", "train", "a.jpg", height=20, width=30), Row("b", "val", "b.jpg", height=40, width=25))
    manifest = Manifest(rows, ALL, ("background", *HOSTILE), HOSTILE, license=ALL)
    for task_results in results.values():
        for result in task_results:
            for run in result.runs:
                poison(run)
    monkeypatch.setattr(segmentation, "plot_head", lambda head, _: {"Masks": FIGURES / f"{ALL.encode().hex()}.png"})
    for module, names in (
        (segmentation, ("plot_miou", "write_plot")),
        (backbones, ("plot_backbones",)),
        (captioning, ("plot_bleu", "plot_captions", "_example_captions", "write_plot")),
        (retrieval, ("plot_recall", "plot_retrieved", "read_rows", "write_plot")),
        (
            classification,
            ("confusion_rows", "plot_accuracy", "plot_confusion_matrix", "plot_mistakes", "read_rows", "write_plot"),
        ),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *arguments: 1)
    monkeypatch.setattr(document, "embed_figure", lambda path: Figure(DATA, 1, 1, 1))
    monkeypatch.setattr(page, "build_browsing", lambda inputs: Browsing([], {}))
    return Inputs(results, skipped, manifest, replace(manifest, source="other"), experiment)


def poison(run: Run) -> None:
    run.inputs.update(
        {"backbone": ALL, "source": ALL, "unknown_words": "<b>|`$x$`![t](http://x)", "unknown_share": "0.5"}
    )
    if "prompt" in run.params:
        run.params["prompt"] = ALL
    if "absent_classes" in run.details:
        run.details["absent_classes"] = list(HOSTILE)
    if "untrained_labels" in run.details:
        run.details["untrained_labels"] = list(HOSTILE)
    if run.task in ("class_attention", "caption_attention", "position_similarity", "second_captioner"):
        run.artifacts.update({f"{ALL} {key}": path for key, path in run.artifacts.items()})
    for epoch in run.history:
        if "iou" in epoch:
            epoch["iou"] = dict.fromkeys(("background", *HOSTILE), 50.0)


def build_report(inputs: Inputs) -> Markdown:
    metrics = {
        "segmentation": metric("miou"),
        "backbones": metric("miou"),
        "captioning": metric("bleu"),
        "retrieval": metric(RECALL),
        "retrieval_grid": metric(RECALL),
        "classification": metric("accuracy"),
    }
    sections = report.build_sections(inputs, metrics)
    claims = render("claims.md", verdicts=evaluate_claims(inputs, metrics))
    runs = [run for results in inputs.results.values() for result in results for run in result.runs]
    return build_page([inputs.manifest], inputs.experiment.profile, list(sections.values()), claims, False, runs)


def check_tags(html: str, figures: set[str]) -> Tags:
    parsed = Tags(html)
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "u", "i", "b", "iframe"), tag
        assert not any(name.startswith("on") for name in attrs)
        if tag == "a":
            assert attrs["href"].startswith("#")
        if tag == "img":
            assert attrs["src"] in figures or attrs["src"].startswith(("figures/", "pictures/"))
    assert "\x1b" not in html and "\u202e" not in html
    return parsed


@pytest.mark.parametrize("html", [False, True])
def test_the_reports_markdown_has_no_markup_from_names(committed, html):
    markdown = build_report(committed)
    rendered = MarkdownIt("commonmark", {"html": html}).enable(["table", "strikethrough"]).render(markdown)
    text = check_tags(rendered, set()).text
    for line in shown(HOSTILE):
        assert line in text
    assert "$x$" not in markdown.replace(r"\$", "")  # a formula on GitHub
    for line in markdown.splitlines():
        if line.startswith("|"):
            table = MarkdownIt("commonmark").enable("table").render(f"| a |\n| --- |\n{line}")
            assert "alert(1)" not in table or "&lt;script&gt;" in table


def test_every_row_of_the_reports_tables_has_the_cells_of_its_head(committed):
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(build_report(committed))
    rows = []
    for token in tokens:
        if token.type == "table_open":
            rows.append([])
        elif token.type == "tr_open":
            rows[-1].append([])
        elif token.type == "inline" and rows and token.level > 3:
            rows[-1][-1].append(token.content)
    assert len(rows) > 8
    for table in rows:
        # Cells that are missing are empty, and those beyond the head are dropped: the last column would show neither.
        assert len({len(row) for row in table}) == 1
        assert not any("alert" in row[-1] for row in table)


def test_the_reports_html_has_no_markup_from_names(committed):
    html = page.build_html(build_report(committed), committed)
    body = html[html.index("<main") : html.index("</main>")]
    text = check_tags(body, {DATA}).text
    for line in shown(HOSTILE):
        assert line in text
    navigation = html[html.index("<nav") : html.index("</nav>")]
    check_tags(navigation, set())


def shown(texts) -> list[str]:
    """What a page shows of texts: one line each, with single spaces and control characters escaped."""
    lines = [text.replace("\x1b", r"\x1b").replace("\x00", r"\x00").replace("\u202e", r"\u202e") for text in texts]
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize(
    "text", [*HOSTILE, ALL, "", " ", "`", "|", "_a_", "1. a", "- a", "# a", "> a", "a" * 3 + "\t|"]
)
@pytest.mark.parametrize("write", [escape, code, lambda text: join([text, text]), lambda text: prose(f"`{text}` a")])
def test_text_is_text_in_a_line_and_in_a_table(text, write):
    if write not in (escape, code) and "`" in text:
        return  # a name between backticks holds none
    markdown = f"before {write(text)} after\n\n| a | b |\n| --- | --- |\n| {write(text)} | last |\n"
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    parsed = Tags(rendered)
    assert {tag for tag, _ in parsed.tags} <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert [tag for tag, _ in parsed.tags].count("td") == 2
    assert "<td>last</td>" in rendered
    assert shown([text])[0] in " ".join(parsed.text.split())


def test_a_table_for_the_terminal_has_one_line_per_row():
    table = Table.from_rows("Caption", ("a", ALL), [(ALL, "1"), ("two\nlines", "2")])
    lines = table.plain().splitlines()
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert "\x1b" not in table.latex("name")
