"""The desk in a real browser: keys, type-ahead, boxes, undo, what survives a reload, what is saved."""

from __future__ import annotations

import csv
import io
import json
import threading
import time

import numpy as np
import pytest
from predictions import HOSTILE_CLASS, HOSTILE_FILE, block, jpeg, many, write_boxed, write_h5

from fgvc_cli.data.names import FORMULA_STARTS, as_cell, from_cell
from fgvc_cli.formats.csv_rows import csv_lines
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.report.page import report, write_page
from fgvc_cli.report.review import COLUMNS, Reviewed, ReviewServer, image_folder, review_header

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'fgvc[test]'")
from reader import WAIT_S  # noqa: E402 - after importorskip
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from test_report_browser import CHROMIUM, DRIVER, FLAGS  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)

CLASSES = ("ant", "bee", "cat", "Größe bee", HOSTILE_CLASS)
GUESSES = [("ant", 0.95), ("bee", 0.9), ("bee", 0.3), ("cat", 0.7), (HOSTILE_CLASS, 0.6), None]
PATHS = [f"m/{i}.jpg" for i in range(4)] + [HOSTILE_FILE, "m/5.jpg"]
"""By doubt: 2, 4, 3, 1, 0, and 5, which has no prediction."""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def preds(tmp_path):
    rows = block(GUESSES, CLASSES, paths=PATHS, crops=True)
    (tmp_path / "images/m").mkdir(parents=True)
    for path in PATHS:
        (tmp_path / "images" / path).write_bytes(jpeg("blue"))
    return write_h5(tmp_path / "p.h5", rows, CLASSES)


@pytest.fixture
def desk(reader, preds, tmp_path):
    """The page from a file, in a browser that knows of no review."""
    report(preds, tmp_path / "p.html", images=str(tmp_path / "images"), review=True, quiet=True)
    reader.open(tmp_path / "p.html")
    reader.js("localStorage.clear()")
    reader.open(tmp_path / "p.html")
    return reader


def marks(reader):
    texts = "card.querySelector('.path').textContent, card.querySelector('.mark')?.textContent ?? ''"
    return dict(reader.js(f"[...document.querySelectorAll('#photos li')].map((card) => [{texts}])"))


def save(reader, downloads):
    """The lines of reviewed.csv, as it is downloaded."""
    for old in downloads.iterdir():
        old.unlink()
    reader.browser.find_element("xpath", "//button[text()='Download reviewed.csv']").click()
    end = time.monotonic() + WAIT_S
    while not (downloads / "reviewed.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    text = (downloads / "reviewed.csv").read_text(encoding="utf-8")
    return [[from_cell(cell) for cell in line] for line in csv.reader(io.StringIO(text))]


def test_a_review_by_keyboard_survives_a_reload_and_is_downloaded(desk, downloads, tmp_path):
    assert desk.position == 1, "the first card has the focus"
    desk.find("#review-bar input[type=text]").send_keys("=kim")
    desk.js("document.querySelector('#photos button[tabindex=\"0\"]').focus()")
    desk.keys("r", "n", "2", "w")  # rows 2, 4, 3, 1
    assert desk.position == 5
    desk.keys("c")
    desk.wait("document.querySelector('#chooser').open")
    desk.keys("grosse b", Keys.ENTER)  # row 0
    expected = {"m/2.jpg": "✓ right", HOSTILE_FILE: "∅ none of these", "m/1.jpg": "✗ wrong"}
    expected |= {"m/3.jpg": "→ Größe bee", "m/0.jpg": "→ Größe bee", "m/5.jpg": ""}
    assert marks(desk) == expected
    desk.keys("r")
    assert "no prediction" in desk.find("#review-trouble").text
    assert desk.find("#reviewed").text == "5 of 6 reviewed"
    desk.open(tmp_path / "p.html")
    assert marks(desk) == expected and desk.find("#reviewed").text == "5 of 6 reviewed"
    head, *lines = save(desk, downloads)
    assert head == list(COLUMNS)
    assert [[line[0], *line[5:9]] for line in lines] == [
        ["images/m/0.jpg", "Größe bee", "ant", "0.950000", "=kim"],
        ["images/m/1.jpg", "wrong", "bee", "0.900000", "=kim"],
        ["images/m/2.jpg", "bee", "bee", "0.300000", "=kim"],
        ["images/m/3.jpg", "Größe bee", "cat", "0.700000", "=kim"],
        [f"images/{HOSTILE_FILE}", "none of these", HOSTILE_CLASS, "0.600000", "=kim"],
    ]
    # What the page saves, fgvc reads as its own, and the other way round.
    kept = Reviewed(downloads / "reviewed.csv", read_table(tmp_path / "p.h5"), "images/")
    assert {row: decision.label for row, decision in kept.decisions.items()} == {
        int(line[0][-5]) if line[0][-5].isdigit() else 4: line[5] for line in lines
    }


def test_a_new_class_is_offered_again_and_undo_takes_all_back(desk):
    desk.keys("c")
    desk.keys("wasp nest", Keys.ENTER)
    desk.keys("c")
    desk.keys("nest")
    desk.wait("document.querySelectorAll('#review-classes li').length === 2")
    assert [item.text for item in desk.browser.find_elements("css selector", "#review-classes li")] == [
        "wasp nest",
        "new class “nest”",
    ]
    desk.keys(Keys.ESCAPE)
    assert desk.position == 2 and desk.find("#reviewed").text == "1 of 6 reviewed"
    desk.keys("n", "w")
    desk.keys("u")
    assert desk.position == 3 and desk.find("#reviewed").text == "2 of 6 reviewed"
    ActionChains(desk.browser).key_down(Keys.CONTROL).send_keys("zz").key_up(Keys.CONTROL).perform()
    assert desk.position == 1 and set(marks(desk).values()) == {""}
    desk.keys("u")
    assert desk.find("#reviewed").text == "0 of 6 reviewed"
    assert desk.js("Object.keys(localStorage).filter((key) => key.startsWith('fgvc-review:')).length") == 0


def test_letters_typed_into_a_filter_decide_nothing(desk):
    desk.find("#text").send_keys("rnw")
    desk.counts("0 of 6 images")
    assert desk.find("#reviewed").text == "0 of 6 reviewed"


def test_filter_by_review_and_order_by_the_two_best(desk):
    desk.keys("r", "n")
    desk.tick("not reviewed")
    desk.counts("4 of 6 images")
    desk.js("document.querySelector('#photos button[tabindex=\"0\"]').focus()")
    desk.keys("w")
    desk.counts("4 of 6 images")  # it stays until the next filter, so that nothing jumps away
    desk.wait("document.querySelector('#reviews li:nth-child(5) .count').textContent === '1'")
    desk.tick("wrong, class not known")
    desk.counts("4 of 6 images")
    desk.tick("not reviewed")
    desk.counts("1 of 6 images")
    desk.find("#clear").click()
    desk.counts("6 images")
    desk.find("#order").send_keys("two best")
    assert desk.paths()[:3] == ["m/2.jpg", HOSTILE_FILE, "m/3.jpg"]  # -0.4, 0.2, 0.4


def test_boxes_of_one_image_are_cards_of_their_own(reader, downloads, tmp_path):
    rows = block([("ant", 0.9), ("bee", 0.8)], paths=["shelf.jpg", "shelf.jpg"])
    rows.more["given_box"] = np.array([[0, 0, 30, 40], [50.25, 0, 90, 40]], "f4")
    rows.more["box_id"] = ["0", "7"]
    (tmp_path / "shelf.jpg").write_bytes(jpeg("blue"))
    report(
        write_boxed(tmp_path / "p.h5", rows),
        tmp_path / "p.html",
        images=str(tmp_path),
        review=True,
        quiet=True,
    )
    reader.open(tmp_path / "p.html")
    reader.js("localStorage.clear()")
    reader.open(tmp_path / "p.html")
    assert sorted(reader.paths()) == ["shelf.jpg, box 0", "shelf.jpg, box 7"]
    views = "[...document.querySelectorAll('#photos svg.photo')].map((one) => one.getAttribute('viewBox'))"
    assert sorted(reader.js(views)) == ["0 0 45 60", "30 0 80 60"]
    assert reader.js("document.querySelectorAll('#photos .given').length") == 2
    reader.js("document.querySelector('#photos button[tabindex=\"0\"]').focus()")
    reader.keys("n", "r")
    head, *lines = save(reader, downloads)
    assert head == [*COLUMNS, "box_id"]
    assert [[*line[:6], line[-1]] for line in lines] == [
        ["shelf.jpg", "0.0", "0.0", "30.0", "40.0", "ant", "0"],
        ["shelf.jpg", "50.2", "0.0", "90.0", "40.0", "none of these", "7"],
    ]
    # The file is taken up again, box by box.
    reader.js("localStorage.clear()")
    reader.open(tmp_path / "p.html")
    reader.browser.find_element("id", "review-file").send_keys(str(downloads / "reviewed.csv"))
    reader.wait("document.querySelector('#reviewed').textContent === '2 of 2 reviewed'")
    assert [line[-1] for line in save(reader, downloads)[1:]] == ["0", "7"]


def test_a_box_is_dragged_in_pixels_of_the_image(desk, downloads):
    desk.keys(Keys.ENTER)
    drawn = desk.find("#detail figure svg")
    box = desk.js("""(() => { const svg = document.querySelector('#detail figure svg'),
        {x, y, width, height} = svg.getBoundingClientRect(), one = svg.getScreenCTM();
        return [one.a, one.e - x - width / 2, one.f - y - height / 2]; })()""")
    scale, left, top = box
    at = [round(left + 20 * scale), round(top + 10 * scale)]
    moves = ActionChains(desk.browser).move_to_element_with_offset(drawn, *at).click_and_hold()
    moves.move_by_offset(round(110 * scale), round(30 * scale)).release().perform()
    assert desk.find(".verdict .said").text == "boxed, not decided"
    desk.keys("r")
    assert desk.find("#detail .place").text == "2 of 6"
    desk.keys(Keys.ESCAPE)
    desk.wait("document.querySelectorAll('#photos .drawn').length === 1")
    _, line = save(desk, downloads)
    assert line[0] == "images/m/2.jpg" and line[5] == "bee"
    # To the right edge of 120 px, which the pointer went beyond.
    assert [float(edge) for edge in line[1:5]] == pytest.approx([20, 10, 120, 40], abs=0.5)


def test_an_earlier_file_is_taken_over(desk, tmp_path):
    earlier = tmp_path / "earlier.csv"
    text = 'path,x1,y1,x2,y2,label\nimages/m/1.jpg,1,2,3,4,"a ""b"", c"\r\nm/2.jpg,,,,,cat\nno.jpg,,,,,cat\n'
    earlier.write_text(text, newline="")
    desk.find("#review-file").send_keys(str(earlier))
    desk.wait("document.querySelector('#reviewed').textContent === '2 of 6 reviewed'")
    assert marks(desk)["m/1.jpg"] == '→ a "b", c' and marks(desk)["m/2.jpg"] == "→ cat"
    assert "1 met no row or had no label" in desk.find("#review-trouble").text


def test_cells_are_written_as_python_writes_them(reader, tmp_path):
    """The script's own functions, under its policy: the page is a copy that shows them."""
    texts = [f"{start}x" for start in FORMULA_STARTS] + [
        "'",
        "'=",
        "-1",
        "+1.5e3",
        "-x",
        "a",
        "",
        'a"b,c',
        "a\nb",
    ]
    stream = io.BytesIO()
    csv_lines(stream, [[text, "end"] for text in texts])
    source = (tmp_path / "p.html", "review.js")
    from fgvc_cli.report.page import _read

    script = _read(source[1]) + "window.tested = {asCell, fromCell, csvLine, parseCsv, matchNames, boxOf};"
    source[0].write_text(f"<meta charset=utf-8><body data-ready=''><script>{script}</script>")
    reader.open(source[0])
    starts = FORMULA_STARTS
    assert reader.js("arguments[0].map((text) => tested.asCell(text, arguments[1]))", texts, starts) == [
        as_cell(text) for text in texts
    ]
    lines = "arguments[0].map((text) => tested.csvLine([text, 'end'], arguments[1])).join('')"
    assert reader.js(lines, texts, starts) == stream.getvalue().decode()
    assert reader.js("tested.parseCsv(arguments[0], arguments[1])", stream.getvalue().decode(), starts) == [
        [text, "end"] for text in texts
    ]
    match = "tested.matchNames(arguments[0], arguments[1])"
    names = ["red kite", "kite, black", "Skite", "Milan kité", "owl"]
    assert reader.js(match, "KITE", names) == ["kite, black", "red kite", "Milan kité", "Skite"]
    assert reader.js(match, "", names) == names and reader.js(match, "x", names) == []
    assert reader.js("tested.boxOf([50.04, -3], [10, 20], 40, 30)") == [10, 0, 40, 20]
    assert reader.js("tested.boxOf([5, 5], [6, 30], 40, 30)") is None


def test_a_hundred_thousand_rows_are_reviewed_at_once(reader, tmp_path):
    table = many(100_000)
    with (tmp_path / "big.html").open("wb") as stream:
        write_page(stream, table, [], title="big", review=review_header(table, "", picked=False))
    assert reader.open(tmp_path / "big.html") < WAIT_S
    worst = reader.browser.execute_async_script("""
        const [done] = arguments, frame = () => new Promise(requestAnimationFrame);
        (async () => {
          let worst = 0;
          for (let i = 0; i < 30; i++) {
            const started = performance.now();
            document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "r", bubbles: true}));
            await frame();
            worst = Math.max(worst, performance.now() - started);
          }
          done(worst);
        })()""")
    assert worst < 1000  # 40 ms on a machine with nothing else to do
    assert reader.find("#reviewed").text == "30 of 100,000 reviewed" and reader.position == 31
    assert reader.js("document.querySelectorAll('#photos li').length") < 100


def test_served_decisions_are_in_the_file_and_come_back_from_it(reader, preds, tmp_path):
    images = str(tmp_path / "images")
    report(preds, tmp_path / "p.html", images=images, review=True, quiet=True)
    table, folder = read_table(preds), image_folder(images, tmp_path)

    def serving():
        server = ReviewServer(tmp_path / "p.html", Reviewed(tmp_path / "reviewed.csv", table, folder))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def labels():
        with (tmp_path / "reviewed.csv").open(newline="") as stream:
            return {line["path"]: line["label"] for line in csv.DictReader(stream)}

    server = serving()
    reader.browser.get(server.url)
    reader.wait("document.body.dataset.ready === ''")
    reader.keys("r", "n", "w", "u")
    reader.wait("Object.keys(localStorage).filter((key) => key.startsWith('fgvc-review:')).length === 0")
    assert labels() == {"images/m/2.jpg": "bee", f"images/{HOSTILE_FILE}": "none of these"}
    server.shutdown()
    server.server_close()
    # Decisions of a time without the server are kept, and sent when it is there again.
    reader.keys("w")
    reader.wait("!document.querySelector('#review-trouble').hidden")
    assert "Not in reviewed.csv yet" in reader.find("#review-trouble").text
    waiting = reader.js("Object.entries(localStorage).filter(([key]) => key.startsWith('fgvc-review:'))")
    assert [json.loads(kept)["label"] for _, kept in waiting] == ["wrong"]
    reader.browser.get_log("browser")  # that nobody answered
    server = serving()  # another address, as after a restart: the file says what was decided
    try:
        reader.browser.get(server.url)
        reader.wait("document.body.dataset.ready === ''")
        assert reader.find("#reviewed").text == "2 of 6 reviewed"
        assert marks(reader)["m/2.jpg"] == "✓ right"
    finally:
        server.shutdown()
        server.server_close()
