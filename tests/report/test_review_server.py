"""reviewed.csv and the server that writes it, over real HTTP; what training reads of it."""

from __future__ import annotations

import csv
import http.client
import io
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from predictions import block, jpeg, several_labels, write_boxed, write_csv, write_h5

import fgvc_cli
from fgvc_cli.data.label_files import NONE_OF_THESE, WRONG
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.report.page import read_labels
from fgvc_cli.report.pictures import PictureMaker, given_boxes
from fgvc_cli.report.review import (
    COLUMNS,
    MAX_BODY,
    Reviewed,
    ReviewServer,
    image_folder,
    pick_rows,
)

WHEN = "2026-05-01T12:00:00Z"
GUESSES = [("ant", 0.95), ("bee", 0.9), ("bee", 0.3), None]


def decision(row=0, label="cat", box=None, who="kim", when=WHEN):
    return {"row": row, "label": label, "box": box, "who": who, "when": when}


@pytest.fixture
def table(tmp_path):
    return read_table(write_h5(tmp_path / "p.h5", block(GUESSES)))


def lines(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


class Client:
    def __init__(self, server):
        self.server, self.token = server, server.token
        self.port = server.server_address[1]

    def ask(self, method, path, body=None, **headers):
        """(status, text); ``/~`` is the token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path.replace("/~", f"/{self.token}"), body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def post(self, changes, **headers):
        body = changes if isinstance(changes, bytes) else json.dumps(changes).encode()
        return self.ask("POST", "/~/decisions", body, **({"Content-Type": "application/json"} | headers))


@pytest.fixture
def client(table, tmp_path):
    (tmp_path / "p.html").write_text("<p>the page</p>")
    server = ReviewServer(tmp_path / "p.html", Reviewed(tmp_path / "reviewed.csv", table, "images/"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Client(server)
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_the_address_with_the_token_answers(client, tmp_path):
    assert client.server.server_address[0] == "127.0.0.1"
    assert client.ask("GET", "/~/") == (200, "<p>the page</p>")
    assert client.ask("HEAD", "/~/") == (200, "")
    assert client.ask("GET", "/~")[0] == 308
    for path in ("/", "/decisions", "/x/", f"/{client.token[:-1]}/", "//", "/../p.html"):
        status, text = client.ask("GET", path)
        assert status == 403 and "token" in text and text.count("\n") == 1, path
    for path in ("/~/p.h5", "/~/reviewed.csv", "/~/../p.h5", "/~/decisions/x"):
        assert client.ask("GET", path)[0] == 404, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.ask(method, "/~/decisions") == (
            405,
            f"{method} is not answered here, expected GET, HEAD, POST.\n",
        )
        assert client.ask(method, "/decisions")[0] == 403
    assert client.ask("POST", "/~/", b"[]")[0] == 405
    assert client.ask("GET", "/~/", Host="evil.example:80")[0] == 403, "a name that leads here by DNS"
    assert client.post([decision()], Origin="http://evil.example")[0] == 403
    assert not (tmp_path / "reviewed.csv").exists()


def test_decisions_are_written_at_once_and_taken_back(client, tmp_path):
    status, text = client.post([decision(1, "=cmd()", [1, 2.04, 30, 40]), decision(0, "ant", who="=kim")])
    assert (status, json.loads(text)) == (200, {"reviewed": 2})
    assert lines(tmp_path / "reviewed.csv") == [
        list(COLUMNS),
        ["images/000.jpg", "", "", "", "", "ant", "ant", "0.950000", "'=kim", WHEN],
        ["images/001.jpg", "1.0", "2.0", "30.0", "40.0", "'=cmd()", "bee", "0.900000", "kim", WHEN],
    ]
    kept = json.loads(client.ask("GET", "/~/decisions")[1])
    assert [row["label"] for row in kept["rows"]] == ["ant", "=cmd()"] and isinstance(kept["who"], str)
    assert client.post([decision(0, None)])[0] == 200
    assert [line[0] for line in lines(tmp_path / "reviewed.csv")[1:]] == ["images/001.jpg"]
    assert [path.name for path in tmp_path.glob("reviewed*")] == ["reviewed.csv"]


@pytest.mark.parametrize(
    "body, said",
    [
        (b"[{", "Expecting"),
        (b"\xff[]", "utf-8"),
        (b"[" * 5000, "recursion"),
        ({"row": 0}, "expected a list of decisions"),
        ([{"row": 0}], "decision 1: expected {row, label, box, who, when}"),
        ([decision(), decision(9)], "decision 2: row got 9, expected a number from 0 to 3"),
        ([decision(True)], "row got true"),
        ([decision(3)], "row 3 has no prediction"),
        ([decision(label="")], "label is empty"),
        ([decision(label="a\nb")], "label got"),
        ([decision(label=7)], "label got 7, expected a text"),
        ([decision(box=[1, 2, 3])], "box got [1, 2, 3], expected"),
        ([decision(box=[5, 2, 3, 8])], "within 120 x 80 px"),
        ([decision(box=[0, 0, 121, 8])], "within 120 x 80 px"),
        ([decision(box=[0, 0, float("nan"), 8])], "box got"),
        ([decision(when="yesterday")], "when got"),
        ([decision() | {"path": "x"}], "decision 1: expected"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(client, tmp_path, body, said):
    client.post([decision(2, "ant")])
    before = (tmp_path / "reviewed.csv").read_bytes()
    status, text = client.post(body)
    assert status == 400 and said in text and text.count("\n") == 1 and len(text) < 300
    assert (tmp_path / "reviewed.csv").read_bytes() == before


def test_requests_of_another_kind_are_refused(client, tmp_path):
    status, text = client.post(b"x" * (MAX_BODY + 1))
    assert status == 413 and text == f"{MAX_BODY + 1:,} bytes, expected {MAX_BODY:,} at most.\n"
    assert client.post([], **{"Content-Type": "text/plain"})[0] == 415, "what a form of another site may send"
    assert client.post([], **{"Content-Length": "many"})[0] == 411
    assert not (tmp_path / "reviewed.csv").exists()


def test_a_full_disk_is_said_and_nothing_is_forgotten(client, tmp_path, monkeypatch):
    client.post([decision(0, "ant")])
    from fgvc_cli.report import review

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(review, "csv_lines", full)
        status, text = client.post([decision(1, "ant")])
        assert status == 500 and "No space left" in text and text.count("\n") == 1
    assert client.post([decision(2, "ant")])[0] == 200
    assert [line[0] for line in lines(tmp_path / "reviewed.csv")[1:]] == ["images/000.jpg", "images/002.jpg"]


def test_an_earlier_review_goes_on_and_other_images_stay_in_it(table, tmp_path):
    out = tmp_path / "reviewed.csv"
    Reviewed(out, table, "images/").update([decision(1, "=x", [1, 2, 3, 4])])
    with out.open("a") as stream:
        stream.write("elsewhere/9.jpg,,,,,wasp,ant,0.5,lee,\n")
    again = Reviewed(out, table, "images/")
    assert len(again) == 2 and again.decisions[1].label == "=x" and again.decisions[1].box == (1, 2, 3, 4)
    again.update([decision(0, "cat")])
    assert [line[0] for line in lines(out)[1:]] == ["images/000.jpg", "images/001.jpg", "elsewhere/9.jpg"]
    # Somebody else saves meanwhile, in a spreadsheet: their word counts.
    out.write_text(out.read_text().replace("images/000.jpg,,,,,cat", "images/000.jpg,,,,,wasp"))
    again.update([decision(2, "bee")])
    assert [line[5] for line in lines(out)[1:]] == ["wasp", "'=x", "bee", "wasp"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("path,label\na.jpg,ant\n", "is there and no review of these rows: line 1 is 'path,label'"),
        (",".join(COLUMNS) + "\n000.jpg,ant\n", "line 2: 2 values, expected 10"),
        (",".join(COLUMNS) + "\n000.jpg,1,2,x,4,ant,bee,0.5,,\n", "line 2: '1,2,x,4' is no box"),
        (",".join(COLUMNS) + '\n"000.jpg', "is not a UTF-8 CSV file"),
    ],
)
def test_a_file_that_is_no_review_is_not_written_over(table, tmp_path, text, said):
    (tmp_path / "reviewed.csv").write_text(text)
    with pytest.raises(FgvcError, match=said):
        Reviewed(tmp_path / "reviewed.csv", table, "")
    assert (tmp_path / "reviewed.csv").read_text() == text


def test_a_port_that_is_taken(client, tmp_path, table):
    with pytest.raises(FgvcError, match=f"Port {client.port} of this machine cannot be used"):
        ReviewServer(tmp_path / "p.html", Reviewed(tmp_path / "r.csv", table, ""), client.port)


def test_where_images_are_from_the_folder_of_the_page(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    assert image_folder(str(tmp_path / "a/b"), tmp_path / "a") == "b/"
    assert image_folder(str(tmp_path / "a"), tmp_path / "a") == ""
    assert image_folder(str(tmp_path / "a"), tmp_path / "a/b") == f"{tmp_path / 'a'}/"
    assert image_folder(str(tmp_path / "a.zip"), tmp_path) == "" == image_folder(None, tmp_path)


def test_rows_that_a_list_names(table, tmp_path):
    (tmp_path / "todo.csv").write_text("path,why\n002.jpg,x\n000.jpg,y\nelse.jpg,z\n")
    said = []
    picked, numbers = pick_rows(table, tmp_path / "todo.csv", said.append)
    assert numbers == [2, 0] and picked.rows.path == ["002.jpg", "000.jpg"]
    assert picked.rows.topk_prob[:, 0].tolist() == pytest.approx([0.3, 0.95])
    assert "1 of 3 lines" in said[0] and "else.jpg" in said[0]
    (tmp_path / "todo.csv").write_text("path\nelse.jpg\n")
    with pytest.raises(
        FgvcError, match="lists none of the 4 rows: it has 'else.jpg', the rows have '000.jpg'"
    ):
        pick_rows(table, tmp_path / "todo.csv")


def test_only_some_rows_keep_their_own_maps_and_crops(tmp_path):
    rows = block([("ant", 0.9), ("bee", 0.9), ("cat", 0.9)], crops=True, maps=True)
    rows.attention[2] = 0.5
    rows.crop[2] = jpeg("green", (50, 40))
    preds = write_h5(tmp_path / "p.h5", rows)
    (tmp_path / "todo.csv").write_text("path\n002.jpg\n")
    made = fgvc_cli.report(preds, tmp_path / "p.html", only=tmp_path / "todo.csv", quiet=True)
    assert (made.rows, made.holds.cropped, made.holds.maps) == (1, 1, 1)
    import base64
    import io
    import re

    text = (tmp_path / "p.html").read_text()
    webp, heat = re.search(r'class="pictures">([^<]*)</script>', text)[1].split(" ")
    red, green, _ = Image.open(io.BytesIO(base64.b64decode(webp))).convert("RGB").getpixel((20, 20))
    assert green > red + 60 and set(base64.b64decode(heat)) == {128}


@pytest.fixture
def shelf(tmp_path):
    """Rows of three boxes, two of them in one image, and one of an image without."""
    rows = block([("ant", 0.9), ("bee", 0.9), ("bee", 0.6), ("ant", 0.8)])
    rows.path = ["a.jpg", "a.jpg", "b.jpg", "c.jpg"]
    rows.more["given_box"] = np.array(
        [[0, 0, 30, 40], [50.25, 0, 90, 40], [5, 5, 25, 25], [np.nan] * 4], "f4"
    )
    rows.more["box_id"] = ["0", "7", "0", ""]
    return read_table(write_boxed(tmp_path / "shelf.h5", rows))


def test_each_box_of_an_image_is_judged_by_itself(shelf, tmp_path):
    out = tmp_path / "reviewed.csv"
    reviewed = Reviewed(out, shelf, "images/")
    reviewed.update([decision(0, "ant"), decision(1, "cat"), decision(2, "bee", [1, 2, 30, 30])])
    reviewed.update([decision(3, "ant")])
    assert lines(out)[0] == [*COLUMNS, "box_id"]
    assert [[*line[:6], line[-1]] for line in lines(out)[1:]] == [
        ["images/a.jpg", "0.0", "0.0", "30.0", "40.0", "ant", "0"],
        ["images/a.jpg", "50.2", "0.0", "90.0", "40.0", "cat", "7"],
        ["images/b.jpg", "1.0", "2.0", "30.0", "30.0", "bee", "0"],
        ["images/c.jpg", "", "", "", "", "ant", ""],
    ]
    again = Reviewed(out, shelf, "images/")
    boxes = {row: (one.label, one.box) for row, one in again.decisions.items()}
    assert boxes == {0: ("ant", None), 1: ("cat", None), 2: ("bee", (1, 2, 30, 30)), 3: ("ant", None)}

    # The boxes are what trains, each with its own class.
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / f"images/{name}.jpg").write_bytes(jpeg("red"))
    labelled = load_labelled(out, for_training=False, box_margin=0.1)
    found = [(e.path[-5:], e.box and (e.box.id, e.box.edges[0]), e.label) for e in labelled.splits["test"]]
    assert found == [
        ("a.jpg", ("0", 0.0), 0),
        ("c.jpg", None, 0),
        ("b.jpg", ("0", 1.0), 1),
        ("a.jpg", ("7", 50.2), 2),
    ]
    assert {e.box.margin for e in labelled.splits["test"] if e.box} == {0.1}

    # The report reads them by box too, and a label of a whole image counts for all its boxes.
    boxes = given_boxes(shelf)
    assert read_labels(out, shelf.rows.path, boxes=boxes, images=str(tmp_path / "images")) == [
        ("ant",),
        ("cat",),
        ("bee",),
        ("ant",),
    ]
    (tmp_path / "whole.csv").write_text("path,label\na.jpg,wasp\n")
    found = read_labels(tmp_path / "whole.csv", shelf.rows.path, boxes=boxes)
    assert found == [("wasp",), ("wasp",), None, None]


def test_boxes_without_a_number_are_known_by_their_edges(shelf, tmp_path):
    # In another order than the detector's, a pixel off, and one that was not predicted on.
    lines = ["path,label,x1,y1,x2,y2", "a.jpg,cat,50,0,90,41", "a.jpg,ant,0,0,30,40", "b.jpg,bee,6,5,25,29"]
    (tmp_path / "truth.csv").write_text("\n".join(lines))
    said = []
    found = read_labels(
        tmp_path / "truth.csv", shelf.rows.path, boxes=given_boxes(shelf), on_note=said.append
    )
    assert found == [("ant",), ("cat",), None, None]
    assert said == ["1 row of labelled images without a label of their own box, first b.jpg."]


def test_a_list_names_boxes_where_it_says_which(shelf, tmp_path):
    (tmp_path / "todo.csv").write_text("path,box_id\na.jpg,7\nb.jpg,0\na.jpg,9\n")
    said = []
    assert pick_rows(shelf, tmp_path / "todo.csv", said.append)[1] == [1, 2]
    assert "(such as a.jpg box 9)" in said[0]
    (tmp_path / "todo.csv").write_text("path\na.jpg\n")
    assert pick_rows(shelf, tmp_path / "todo.csv")[1] == [0, 1]


def test_the_picture_of_a_box_shows_what_is_round_it(shelf, tmp_path):
    image = Image.new("RGB", (120, 80), "blue")
    image.paste((255, 0, 0), (0, 0, 30, 40))
    image.save(tmp_path / "a.jpg", quality=95)
    pictures = list(PictureMaker(shelf, str(tmp_path), px=60).make([0, 1], None))
    assert [picture.view for picture in pictures] == [(0, 0, 45, 60), (30, 0, 110, 60)]
    shown = Image.open(io.BytesIO(pictures[0].webp)).convert("RGB")
    assert shown.size == (45, 60)
    assert shown.getpixel((10, 10))[0] > 200 and shown.getpixel((40, 50))[2] > 200


def test_what_a_page_cannot_ask_for(tmp_path):
    preds, _ = several_labels(tmp_path)
    with pytest.raises(FgvcError, match="several labels per image; --review asks for one class"):
        fgvc_cli.report(preds, tmp_path / "p.html", review=True)
    rows = write_h5(tmp_path / "n.h5", block([("ant", 0.9)], ("ant", WRONG)), ("ant", WRONG))
    with pytest.raises(FgvcError, match="has a class 'wrong'"):
        fgvc_cli.report(rows, tmp_path / "p.html", review=True)
    assert not (tmp_path / "p.html").exists()


@pytest.fixture
def reviewed(tmp_path):
    """Predictions of images/, and a review of them: two classes, and two images that have none."""
    (tmp_path / "images").mkdir()
    names = [f"{i:03d}.jpg" for i in range(10)] + ["=10.jpg"]
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / name)
    rows = block([("ant", 0.9)] * len(names), paths=names)
    rows.size[:] = 40
    preds = write_h5(tmp_path / "p.h5", rows)
    table = read_table(preds)
    labels = ["ant"] * 5 + ["wasp"] * 3 + [NONE_OF_THESE, WRONG, "wasp"]
    changes = [decision(i, label, [1, 1, 9, 9] if i == 2 else None) for i, label in enumerate(labels)]
    Reviewed(tmp_path / "reviewed.csv", table, image_folder(str(tmp_path / "images"), tmp_path)).update(
        changes
    )
    return preds


def test_a_review_is_a_labelled_table(reviewed, tmp_path):
    labelled = load_labelled(tmp_path / "reviewed.csv")
    assert labelled.classes == ("ant", "wasp") and sum(labelled.counts().values()) == 9
    paths = {example.path for split in labelled.splits.values() for example in split}
    assert "images/=10.jpg" in paths and "images/008.jpg" not in paths
    notes = "\n".join(labelled.notes)
    assert "reviewed.csv: marked 'none of these' and left out: 1 image." in notes
    assert "reviewed.csv: marked 'wrong' and left out: 1 image." in notes
    drawn = [example for split in labelled.splits.values() for example in split if example.box]
    assert [(example.path, example.box.edges) for example in drawn] == [("images/002.jpg", (1, 1, 9, 9))]
    assert "reviewed.csv: 1 line is a box; each is an image of its own, cut out with a margin of 0" in notes
    # In a table that is no review these are classes as any other.
    (tmp_path / "plain.csv").write_text("path,label\nimages/000.jpg,wrong\nimages/001.jpg,ant\n")
    assert load_labelled(tmp_path / "plain.csv", for_training=False).classes == ("ant", "wrong")


def test_a_name_that_begins_like_a_formula_is_found_again(tmp_path):
    (tmp_path / "=1.jpg").write_bytes(jpeg("red"))
    table = read_table(write_h5(tmp_path / "p.h5", block([("ant", 0.9)], paths=["=1.jpg"])))
    Reviewed(tmp_path / "reviewed.csv", table, "").update([decision(0, "-dash")])
    assert "'=1.jpg" in (tmp_path / "reviewed.csv").read_text()
    labelled = load_labelled(tmp_path / "reviewed.csv", for_training=False)
    assert labelled.classes == ("-dash",) and labelled.splits["test"][0].path == "=1.jpg"


def test_a_review_measures_the_rows_it_is_of(reviewed, tmp_path, capsys):
    made = fgvc_cli.report(
        reviewed, tmp_path / "again.html", images=str(tmp_path / "images"), labels=tmp_path / "reviewed.csv"
    )
    assert made.rows == 11
    # Five are right; what is none of the classes, or wrong, is a mistake of the model.
    assert (
        "45.5% of 11 labelled rows are right. Labels that are no class of the model: 3."
        in capsys.readouterr().err
    )


def test_the_command_serves_until_ctrl_c(tmp_path):
    preds = write_csv(tmp_path / "p.csv", block(GUESSES))
    command = [
        sys.executable,
        "-m",
        "fgvc_cli",
        "report",
        str(preds),
        "--serve",
        "--out",
        str(tmp_path / "p.html"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        while not (said and "Review at" in said[-1]):
            said.append(process.stderr.readline())
            assert said[-1], said
        url = said[-1].split()[2]
        _, _, host, token, _ = url.split("/")
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", f"/{token}/")
        text = connection.getresponse().read().decode()
        assert text == (tmp_path / "p.html").read_text() and "connect-src 'self'" in text
        body = json.dumps([decision(0, "bee")])
        connection.request("POST", f"/{token}/decisions", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.returncode == 0
        rest = process.stderr.read()
        assert "1 images in" in rest and "Traceback" not in rest
    finally:
        process.kill()
        process.stderr.close()
    assert lines(tmp_path / "reviewed.csv")[1][:6] == ["000.jpg", "", "", "", "", "bee"]
