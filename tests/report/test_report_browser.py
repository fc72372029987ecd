"""The page in a real browser: what a reader does with mouse and keyboard, and that nothing breaks."""

from __future__ import annotations

import re
import shutil

import pytest
from predictions import HOSTILE_CLASS, HOSTILE_FILE, block, jpeg, many, several_labels, write_csv, write_h5

from fgvc_cli.report.page import report, write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'fgvc[test]'")
from reader import WAIT_S, contrast  # noqa: E402 - after importorskip
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)
CLASSES = ("ant", "bee", "cat", HOSTILE_CLASS)
GUESSES = [("ant", 0.95), ("bee", 0.9), ("bee", 0.3), ("cat", 0.7), (HOSTILE_CLASS, 0.6), None, ("ant", 0.8)]
PATHS = [f"meadow/{i}.jpg" for i in range(4)] + [HOSTILE_FILE, "wood/5.jpg", "wood/6.jpg"]
LABELS = ["ant", "bee", "ant", "bee", "", "ant", "wasp"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Seven rows, six with an image of their own or a crop; labels for six of them."""
    folder = tmp_path_factory.mktemp("page")
    rows = block(GUESSES, CLASSES, paths=PATHS, parts=1, maps=True, crops=True)
    for path in PATHS[:2]:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(jpeg("blue"))
    lines = [f'"{path}",{label}' for path, label in zip(PATHS, LABELS, strict=True) if label]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]))
    preds = write_h5(folder / "p.h5", rows, CLASSES)
    report(preds, out=folder / "p.html", images=str(folder), labels=folder / "labels.csv", quiet=True)
    return folder / "p.html"


@pytest.fixture(scope="module")
def big_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("big") / "big.html"
    with path.open("wb") as stream:
        write_page(stream, many(100_000), [], title="big")
    return path


def test_unsure_come_first_and_hostile_names_are_text(reader, page):
    reader.open(page)
    reader.counts("7 images")
    expected = [2, 4, 3, 6, 1, 0, 5]
    assert reader.paths() == [PATHS[i] for i in expected]
    assert (HOSTILE_CLASS, HOSTILE_FILE) in reader.cards()
    assert reader.find("#summary").text == "7 images · 1 unsure · 1 failed · 4 classes of vitms-test"
    assert reader.js("document.querySelectorAll('img').length") == 0


def test_unknown_ones_are_counted_and_come_before_the_unsure(reader, tmp_path):
    rows = block([("ant", 0.9), ("bee", 0.4), ("cat", 0.95), None])
    rows.status[2] = "unknown"
    report(write_h5(tmp_path / "p.h5", rows), out=tmp_path / "p.html", quiet=True)
    reader.open(tmp_path / "p.html")
    reader.counts("4 images")
    assert reader.paths() == ["002.jpg", "001.jpg", "000.jpg", "003.jpg"]
    assert reader.find("#summary").text.startswith("4 images · 1 unknown · 1 unsure · 1 failed")
    reader.tick("unknown")
    reader.counts("1 of 4 images")


def test_orders_by_keyboard(reader, page):
    reader.open(page)
    reader.find("#order").send_keys("path, Z")
    assert Select(reader.find("#order")).first_selected_option.text == "path, Z to A"
    assert reader.paths() == sorted(PATHS, reverse=True)
    Select(reader.find("#order")).select_by_visible_text("failures first")
    assert reader.paths()[0] == "wood/5.jpg"
    Select(reader.find("#order")).select_by_visible_text("class")
    assert [name for name, _ in reader.cards()[1:]] == ["ant", "ant", "bee", "bee", "cat", "truncated"]
    Select(reader.find("#order")).select_by_value("mistakes")
    assert reader.paths()[:3] == ["wood/6.jpg", "meadow/3.jpg", "meadow/2.jpg"]


def test_filters_by_mouse(reader, page):
    reader.open(page)
    reader.tick("truncated")
    reader.counts("1 of 7 images")
    reader.tick("unsure")
    reader.counts("2 of 7 images")
    reader.find("#clear").click()
    reader.counts("7 images")
    reader.tick("bee")
    reader.counts("2 of 7 images")
    statuses = [count.text for count in reader.browser.find_elements("css selector", "#statuses .count")]
    assert statuses == ["1", "1", "0"]  # ok, unsure, truncated: what each would leave
    reader.find("#wrong").click()
    reader.counts("1 of 7 images")
    reader.tick("cat")
    reader.counts("2 of 7 images")
    reader.find("#clear").click()
    reader.find("#class-text").send_keys("ca")
    reader.wait("document.querySelectorAll('#classes li').length === 1")


def test_filters_by_keyboard(reader, page):
    reader.open(page)
    reader.find("#text").send_keys("wood JPG")
    reader.counts("2 of 7 images")
    reader.keys(Keys.TAB, Keys.SPACE)  # only mistakes
    reader.counts("1 of 7 images")
    assert reader.paths() == ["wood/6.jpg"]
    reader.find("#clear").send_keys(Keys.ENTER)
    reader.counts("7 images")
    assert reader.js("document.activeElement.id") == "clear"
    reader.find("#most").send_keys(*[Keys.PAGE_DOWN] * 5)  # 10 % each
    reader.counts("1 of 7 images")
    assert reader.find("output[for=most]").text == "50 %"
    reader.find("#least").send_keys(Keys.END)  # which pushes the other handle
    reader.counts("0 of 7 images")
    assert reader.find("output[for=most]").text == "100 %" and reader.find("#none").is_displayed()


def test_cards_and_the_open_image_by_keyboard(reader, page):
    reader.open(page)
    reader.js("document.querySelector('#photos button[tabindex=\"0\"]').focus()")
    reader.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert reader.position == 2
    reader.keys(Keys.ARROW_DOWN)
    assert reader.position == 6  # of four in a row
    reader.keys(Keys.ARROW_DOWN)
    assert reader.position == 6
    reader.keys(Keys.ENTER)
    assert reader.find("#detail-name").text == "ant" and reader.find("#detail .place").text == "6 of 7"
    reader.keys(Keys.ARROW_RIGHT)
    assert reader.find("#detail-name").text == "truncated"
    assert "the file ends early" in reader.find("#detail").text
    reader.keys(Keys.ARROW_RIGHT, Keys.ESCAPE)
    reader.wait("document.activeElement.closest('li')?.getAttribute('aria-posinset') === '7'")
    reader.keys(Keys.HOME)
    assert reader.position == 1
    outline = reader.js("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"


def test_boxes_and_attention_lie_where_they_belong(reader, page):
    reader.open(page)
    Select(reader.find("#order")).select_by_visible_text("as predicted")
    geometry = """[...document.querySelectorAll('#photos li:nth-child(%d) :is(.box .line, .heat)')].map(
        (box) => ['x', 'y', 'width', 'height'].map((side) => Number(box.getAttribute(side))))"""
    view = "document.querySelector('#photos li:nth-child(%d) svg').getAttribute('viewBox')"
    part, own = [0, 0, 10, 10], [10, 10, 50, 40]
    assert reader.js(geometry % 1) == [part, own] and reader.js(view % 1) == "0 0 120 80"
    assert reader.js(view % 3) == "10 10 50 40"  # a crop shows what of the image it holds
    card = reader.find("#photos li:nth-child(1) button")
    ActionChains(reader.browser).move_to_element(card).perform()
    reader.wait("getComputedStyle(document.querySelector('#photos .heat')).opacity === '1'")
    assert reader.js(geometry % 1) == [[0, 0, 120, 80], part, own]
    ActionChains(reader.browser).move_to_element(reader.find("h1")).perform()
    reader.wait("getComputedStyle(document.querySelector('#photos .heat')).opacity === '0'")
    reader.find("#maps").click()
    reader.wait("document.querySelectorAll('#photos .heat').length === 6")
    reader.wait("getComputedStyle(document.querySelector('#photos .heat')).opacity === '1'")
    reader.find("#boxes").click()
    assert not reader.find("#photos .box").is_displayed()


def test_the_labels_page(reader, page):
    reader.open(page)
    reader.find("#tab-photos").send_keys(Keys.ARROW_RIGHT)
    assert reader.js("document.activeElement.id") == "tab-labels"
    facts = re.sub(r"\s+", " ", reader.js("document.getElementById('accuracy').textContent"))
    # Of the five that are labelled and predicted, rows 0 and 1 are right; row 3 has its label second.
    assert "right, of 5 labelled images40.0 %" in facts and "mistakes3" in facts
    assert "labelled, but without a prediction1" in facts
    pairs = [pair.text for pair in reader.browser.find_elements("css selector", ".pair h3")]
    assert pairs == ["ant taken for bee", "bee taken for cat", "wasp taken for ant"]
    assert reader.js("document.querySelectorAll('.pair .thumb image').length") == 5
    cells = reader.js("[...document.querySelectorAll('.matrix button')].map((cell) => cell.ariaLabel)")
    assert "ant, taken for ant: 1" in cells and "ant, taken for bee: 1" in cells and len(cells) == 5
    assert "no class of the model" in reader.find("#view-labels").text
    reader.find(".pair .link").click()
    reader.counts("1 of 7 images")
    assert reader.paths() == ["meadow/2.jpg"] and "whose label is ant" in reader.find("#pair").text
    reader.find("#pair button").click()
    reader.counts("2 of 7 images")


def test_a_page_without_maps_labels_and_pictures(reader, tmp_path):
    report(write_csv(tmp_path / "p.csv", block(GUESSES[:4])), out=tmp_path / "p.html", quiet=True)
    reader.open(tmp_path / "p.html")
    assert not reader.find("#maps-label").is_displayed() and not reader.find("#tabs").is_displayed()
    assert "It shows no attention maps." in reader.find("#about").text
    assert reader.js("document.querySelectorAll('#photos .absent').length") == 4
    reader.find("#photos button").click()
    assert "No picture is stored of this row." in reader.find("#detail").text


def test_a_hundred_thousand_rows_scroll(reader, big_page):
    assert reader.open(big_page) < WAIT_S
    reader.counts("100,000 images")
    worst = reader.browser.execute_async_script("""
        const [done] = arguments, frame = () => new Promise(requestAnimationFrame);
        (async () => {
          let worst = 0;
          for (const share of [0.9, 0.1, 0.5, 0.2, 0.7]) {
            const started = performance.now();
            scrollTo(0, share * document.documentElement.scrollHeight);
            await frame(); await frame();
            const seen = [...document.querySelectorAll('#photos li')].some((card) => {
              const {top, bottom} = card.getBoundingClientRect();
              return top < innerHeight && bottom > innerHeight - 50;
            });
            worst = Math.max(worst, seen ? performance.now() - started : Infinity);
          }
          done(worst);
        })()""")
    assert worst < 2000  # 100 ms on a machine with nothing else to do
    assert reader.js("document.querySelectorAll('#photos li').length") < 100
    assert reader.js("document.querySelectorAll('#photos button[tabindex=\"0\"]').length") == 1
    reader.find("#text").send_keys("camera-077")
    reader.counts("1,000 of 100,000 images")


@pytest.mark.parametrize("width", [1280, 500])
def test_every_row_of_a_hundred_thousand_is_reached(reader, big_page, width):
    """A narrow page is higher than browsers scroll exactly; its scroll bar then stands for more pixels."""
    reader.browser.set_window_size(width, 800)
    reader.open(big_page)
    reader.js("document.querySelector('#photos button[tabindex=\"0\"]').focus()")
    reader.keys(Keys.END)
    assert reader.position == 100_000
    on_screen = """(() => { const {top, bottom} = document.activeElement.getBoundingClientRect();
        return top >= 0 && bottom <= innerHeight; })()"""
    assert reader.js(on_screen)
    reader.keys(Keys.ARROW_LEFT, Keys.PAGE_UP, Keys.ARROW_RIGHT)
    assert reader.position < 100_000 and reader.js(on_screen)
    label = reader.js("document.activeElement.ariaLabel")
    assert label.endswith(f"{reader.position - 1:07d}.jpg")  # unsure first is the order of the file here
    reader.keys(Keys.HOME)
    assert reader.position == 1 and reader.js(on_screen)
    assert reader.js("document.documentElement.scrollWidth") <= reader.js("innerWidth")


def test_everything_has_a_name_and_text_stands_out(reader, page):
    reader.open(page)
    reader.find("#photos button").click()
    nameless = reader.js("""[...document.querySelectorAll('button, input, select, [role=img], [role=region]')]
        .filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim()))
        .map((one) => one.outerHTML)""")
    assert nameless == []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colours = reader.js("""Object.fromEntries(['paper', 'sheet', 'track', 'ink', 'quiet', 'accent',
            'accent-soft', 'doubt', 'doubt-soft', 'fault', 'fault-soft'].map((name) =>
            [name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()]))""")
        for text in ("ink", "quiet", "accent"):
            for ground in ("paper", "sheet", "track"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)
        for text in ("doubt", "fault"):
            assert contrast(colours[text], colours[f"{text}-soft"]) >= 4.5, (scheme, text)
        assert contrast(colours["ink"], colours["accent-soft"]) >= 4.5
    reader.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    reader.js("document.querySelector('#photos button').focus()")
    assert reader.js("getComputedStyle(document.querySelector('#photos .heat')).transitionDuration") == "0s"
    reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_label_sets_are_counted_whole_and_label_by_label(reader, tmp_path):
    preds, labels = several_labels(tmp_path)
    report(preds, out=tmp_path / "p.html", labels=labels, quiet=True)
    reader.open(tmp_path / "p.html")
    names = {path: name for name, path in reader.cards()}
    assert (names["000.jpg"], names["001.jpg"], names["002.jpg"]) == ("ant + bee", "bee", "no label")
    chips = [chip.text for chip in reader.browser.find_elements("css selector", ".chip.wrong")]
    assert chips == ["really bee + cat"]
    reader.find("#wrong").click()
    reader.counts("1 of 5 images")
    reader.find("#clear").click()
    reader.tick("bee")
    reader.counts("2 of 5 images")
    reader.find("#tab-labels").click()
    assert "exactly its labels (exact match)" in reader.find("#measure").text
    facts = reader.find("#accuracy").text.replace("\n", " ")
    for fact in ("66.7 %", "of 3 labelled images", "85.7 %", "micro F1", "without a label"):
        assert fact in facts, facts
    assert "In 1 row all 2 are above 50 %" in reader.find("#view-labels").text
    rows = [row.text for row in reader.browser.find_elements("css selector", "table.classes tbody tr")]
    assert rows == ["cat 1 0 % 0 – 0 %", "bee 2 100 % 2 100 % 100 %", "ant 1 100 % 1 100 % 100 %"]
    assert not reader.browser.find_elements("css selector", ".matrix"), "no confusion of sets"
    reader.find("table.classes tbody button").click()
    reader.counts("1 of 5 images")
    assert reader.find("#pair").text.startswith("Only images with the label cat.")
