"""The HTML page in a real browser, without a network."""

import shutil

import pytest
from playwright.sync_api import sync_playwright
from sample_report import CAPTION, CLASSES, HEADS, LABELS, OBJECTS, SCENES, SETTINGS, write_report

from stages.report.html import build_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")

PHONE = {"width": 390, "height": 844}
AREAS = ".scroll, .figures, .toolbar, .pager"  # those that hold controls
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        page, inputs = write_report(folder)
        path = folder / "reports/report.html"
        path.write_text(build_html(page, inputs), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser, url):
    """Opens the page; at the end, nothing may have been requested, written to the console, or shown as a dialog."""
    contexts = []
    messages = []

    def open_in(viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, offline=True, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: messages.append(request.url) if _is_foreign(request.url, url) else None)
        page.goto(url)
        return page

    yield open_in
    for context in contexts:
        context.close()
    assert messages == []


def _is_foreign(requested, url):
    return requested != url and not requested.startswith("data:")


def view(page, name):
    return page.locator(f'.browser[data-view="{name}"]')


def titles(page, name):
    return view(page, name).locator(".card h4").all_inner_texts()


def choose(page, name, label, option):
    view(page, name).get_by_label(label, exact=True).select_option(label=option)


def column(table, index):
    return [row.locator("th, td").nth(index).inner_text() for row in table.locator("tbody tr").all()]


def focused(page):
    return page.evaluate("document.activeElement.textContent.trim()")


@pytest.mark.parametrize("key", [None, "Enter", "Space"])
def test_a_table_sorts_by_click_and_by_key(open_page, key):
    page = open_page()
    table = page.locator("table.sortable").first
    header = table.get_by_role("button", name="Score")

    def press():
        if key:
            header.press(key)
        else:
            header.click()

    press()
    assert column(table, 1) == ["1e-3", "9.50*", "10.25", "-"]
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    press()
    assert column(table, 1) == ["10.25", "9.50*", "1e-3", "-"]  # a cell without a number stays last
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Head").click()
    assert column(table, 0) == sorted(column(table, 0), key=str.lower)
    assert table.locator("th").nth(1).get_attribute("aria-sort") is None


def test_the_table_of_class_ious_keeps_its_mean_last(open_page):
    page = open_page()
    table = page.locator("table.bars")
    table.get_by_role("button", name=HEADS[0]).click()
    assert column(table, 1) == ["70.0", "80.0", "90.0", "-"]
    assert table.locator("tfoot td").first.inner_text() == "80.0"
    bars = table.locator("tbody .bar").evaluate_all("bars => bars.map((bar) => bar.getBoundingClientRect().width)")
    assert bars[0] < bars[2] < bars[4]


def test_names_appear_as_text(open_page):
    page = open_page()
    text = page.locator("main").text_content()
    for name in (*CLASSES, *HEADS, *SETTINGS):
        assert name in text
    cards = view(page, "captioning")
    assert cards.locator(".reference").first.text_content() == f"Reference: {CAPTION}"
    assert 'Greedy search, "a <u>picture</u> of"' in cards.locator("tbody th").all_text_contents()
    options = view(page, "segmentation").get_by_label("Class", exact=True).locator("option").all_text_contents()
    # A browser shows options without line breaks.
    assert options == [f"All classes ({SCENES})", f"background ({SCENES})", *(f"{name} (4)" for name in CLASSES[1:])]


def test_segmentation_filters_by_class_and_orders_by_iou(open_page):
    page = open_page()
    assert titles(page, "segmentation")[:2] == ["scene_00", "scene_01"]
    # The first head's masks are moved farther from image to image, the second's are all right.
    choose(page, "segmentation", "Score of", "Linear")
    choose(page, "segmentation", "Order", "Best first")
    assert titles(page, "segmentation")[0] == "scene_00"
    choose(page, "segmentation", "Order", "Worst first")
    assert "scene_00" not in titles(page, "segmentation")
    view(page, "segmentation").get_by_label("Class", exact=True).select_option(index=2)
    assert sorted(titles(page, "segmentation")) == ["scene_00", "scene_03", "scene_06", "scene_09"]
    assert titles(page, "segmentation")[-1] == "scene_00"
    assert view(page, "segmentation").get_by_role("status").inner_text() == "Images 1 to 4 of 4 (12 without filters)"
    scores = view(page, "segmentation").locator(".card").last.locator(".score").all_text_contents()
    assert scores == [f"IoU of {CLASSES[1]} 100.0 %"] * 2


def test_captions_order_by_their_score(open_page):
    page = open_page()
    choose(page, "captioning", "Order", "Worst first")
    worst = view(page, "captioning").locator(".card").first
    scores = [float(text) for text in worst.locator("td.number").all_inner_texts()]
    assert scores[0] == 100.0 > 30 > scores[1]


def test_retrieval_marks_the_own_image_and_orders_by_rank(open_page):
    page = open_page()
    retrieval = view(page, "retrieval")
    retrieval.get_by_label("Row").select_option(index=1)
    first = retrieval.locator(".card").nth(1)
    assert first.locator("ol li").all_inner_texts() == ["1", "2", "3 ✓ own image", "4", "5"]
    assert "Text to image: rank 3" in first.inner_text()
    choose(page, "retrieval", "Order", "Worst first")
    assert titles(page, "retrieval")[0] == "scene_00"
    assert "rank 7" in retrieval.locator(".card").first.inner_text()


def test_classification_shows_mistakes_with_probabilities(open_page):
    page = open_page()
    classification = view(page, "classification")
    assert titles(page, "classification") == ["object_0", "object_1"]
    choose(page, "classification", "Order", "Worst first")
    assert titles(page, "classification") == ["object_1", "object_0"]
    text = classification.locator(".card").first.inner_text()
    assert "✗ wrong" in text
    assert f"{LABELS[1]} 36.0 %" in text
    assert f"{LABELS[0]} 64.0 %" in text
    choose(page, "classification", "Setting", SETTINGS[1])
    assert titles(page, "classification") == []
    classification.get_by_label("Mistakes only").uncheck()
    assert len(titles(page, "classification")) == OBJECTS
    assert "✓ right" in classification.locator(".card").first.inner_text()


def test_pages_turn(open_page):
    page = open_page()
    captions = view(page, "captioning")
    captions.get_by_role("button", name="Next").first.click()
    assert titles(page, "captioning") == ["scene_04", "scene_05", "scene_06", "scene_07"]
    captions.get_by_label("Page").first.fill("3")
    captions.get_by_label("Page").first.press("Enter")
    assert titles(page, "captioning")[0] == "scene_08"
    captions.get_by_role("button", name="Next").first.press("Enter")  # the last page: nothing happens
    assert titles(page, "captioning")[0] == "scene_08"
    choose(page, "captioning", "Order", "Best first")
    assert captions.get_by_label("Page").first.input_value() == "1"


@pytest.mark.parametrize("selector", [".figures .enlarge", ".card .enlarge"])
def test_a_picture_enlarges_and_closes_with_escape(open_page, selector):
    page = open_page()
    button = page.locator(selector).first
    button.focus()
    small = button.locator("img").bounding_box()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    large = dialog.locator("img").bounding_box()
    assert large["width"] > 1.5 * small["width"]
    assert dialog.locator("img").get_attribute("alt") == button.locator("img").get_attribute("alt")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("node => node === document.activeElement")
    button.click()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(open_page, scheme):
    page = open_page(PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.get_by_role("button", name="theme").click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_theme_follows_the_system_until_it_is_chosen(open_page):
    page = open_page(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light theme").click()
    light = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == light
    assert page.get_by_role("button", name="Dark theme").is_visible()


def test_the_keyboard_reaches_all_controls(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the report"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Tab")
    assert focused(page) == "Dark theme"
    last = view(page, "classification").locator(".card .enlarge").last
    visited = set()
    while not last.evaluate("node => node === document.activeElement"):
        page.keyboard.press("Tab")
        visited.add(page.evaluate(f"document.activeElement.closest('{AREAS}')?.className"))
    assert {"scroll", "figures", "toolbar", "pager"} <= visited
    named = "nodes => nodes.every((node) => node.ariaLabel || node.textContent.trim() || node.labels?.length)"
    assert page.locator("button, select, input").evaluate_all(named)
    assert page.locator("img:not([alt])").count() == 0


def test_the_page_prints_light_without_controls(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in (".side", ".toolbar", ".pager"):
        assert not page.locator(hidden).first.is_visible()
    for visible in ("table.sortable", ".figures img", ".card"):
        assert page.locator(visible).first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_javascript_tables_and_figures_are_complete(open_page):
    page = open_page(java_script_enabled=False)
    assert column(page.locator("table.sortable").first, 1) == ["9.50*", "10.25", "-", "1e-3"]
    assert page.locator(".figures img").is_visible()
    assert page.locator("table.bars").is_visible()
    assert page.get_by_text("This section needs JavaScript").is_visible()
    assert not page.get_by_role("button").first.is_visible()
    assert not page.locator("dialog").is_visible()
