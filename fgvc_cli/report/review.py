"""A review: what people say of rows, as ``reviewed.csv``, and the server on this machine that writes it.

The page (``page/review.js``) keeps decisions in the browser and offers them as a file; ``fgvc report
--serve`` shows it from a loopback address and writes the file beside it. Both write the same lines:

    path               where the image lies, from the folder of the file, or absolute: what fgvc train reads
    x1 y1 x2 y2        a box that was drawn, pixels of the upright image, ends exclusive; else the box that
                       the row is of; empty for a whole image
    label              what the image shows, or ``none of these``, or ``wrong``: not old_label, but what?
    old_label prob     the model's best class and its probability
    who when           a name, and a time in UTC
    box_id             only where rows are of given boxes: which of the image's
"""

from __future__ import annotations

import contextlib
import csv
import getpass
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fgvc_cli.command import Messages
from fgvc_cli.data.geometry import Box
from fgvc_cli.data.label_files import NONE_OF_THESE, WRONG
from fgvc_cli.data.names import FORMULA_STARTS, from_cell
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.csv_rows import csv_lines
from fgvc_cli.formats.rows import ARRAYS, TEXTS, Table, as_text
from fgvc_cli.report.pictures import given_box
from fgvc_cli.sources.boxes import GivenBox

REVIEWED = "reviewed.csv"
COLUMNS = ("path", "x1", "y1", "x2", "y2", "label", "old_label", "prob", "who", "when")
BOX_ID = "box_id"
MAX_BODY = 1 << 20
"""Bytes of a request: the page sends 200 decisions at most, of about 150 bytes each."""
TEXT_MOST = 500
"""Letters of a class name or a reviewer's."""

_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def image_folder(images: str | None, home: Path) -> str:
    """What stands before a row's path where it is to be found from a folder: ``birds/test/``, or absolute
    where the images do not lie below that folder; empty where they are in it, in no folder, or nobody knows
    where.

    Args:
        images: as ``PictureMaker`` takes it.
    """
    if images is None or not os.path.isdir(images):
        return ""
    real, base = Path(os.path.realpath(images)), Path(os.path.realpath(home))
    if real == base:
        return ""
    return as_text(f"{(real.relative_to(base) if real.is_relative_to(base) else real).as_posix()}/")


def image_path(folder: str, path: str) -> str:
    """A row's path behind ``image_folder``; absolute ones stay."""
    return path if re.match(r"/|[A-Za-z]:", path) else f"{folder}{path}"


def box_ids(table: Table) -> list[str]:
    """The id of each row's given box, empty for a whole image; none at all where no boxes were given."""
    return list(table.rows.more.get(BOX_ID, ()))


def review_columns(table: Table) -> tuple[str, ...]:
    """The columns of ``reviewed.csv``."""
    return (*COLUMNS, BOX_ID) if box_ids(table) else COLUMNS


def check_reviewable(table: Table) -> None:
    """Raise FgvcError unless one class per row is what the page can ask for."""
    if table.info.multi_label:
        raise FgvcError(
            f"{table.source} is of a model that tells several labels per image; --review asks for one class "
            "of each.",
            "fgvc report without --review shows it.",
        )
    for name in table.info.classes:
        if name in (NONE_OF_THESE, WRONG):
            raise FgvcError(
                f"The model has a class {name!r}, which {REVIEWED} means something else by.",
                "Give that class another name and train again.",
            )


def review_header(table: Table, folder: str, *, picked: bool) -> dict[str, Any]:
    """What the page's script is told of the review.

    Args:
        folder: see ``image_folder``.
        picked: the rows are a choice in an order of its own.
    """
    rows, digest = table.rows, hashlib.sha256(table.info.weights_sha256.encode())
    for texts in (rows.path, table.info.classes):
        digest.update("\0".join(texts).encode(errors="backslashreplace"))
    for array in (rows.topk_index, rows.topk_prob):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "key": digest.hexdigest()[:16],
        "columns": review_columns(table),
        "none": NONE_OF_THESE,
        "wrong": WRONG,
        "starts": FORMULA_STARTS,
        "folder": folder,
        "picked": picked,
    }


def pick_rows(
    table: Table, only: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[Table, list[int]]:
    """The rows whose paths a CSV lists, in its order, and their numbers in the table.

    Raises:
        FgvcError: it cannot be read, has no column path, or not one of its paths is among the rows.
    """
    header, lines = _read_csv(only)
    if "path" not in header:
        raise FgvcError(
            f"{only} line 1: no column path in {','.join(header)[:80]!r}.", "fgvc select PREDS --out todo.csv"
        )
    ids = box_ids(table) if BOX_ID in header else []
    columns = [header.index(name) for name in ("path", *([BOX_ID] if ids else []))]
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(zip(table.rows.path, ids, strict=True) if ids else zip(table.rows.path)):
        rows_of.setdefault(key, []).append(row)
    wanted = dict.fromkeys(
        tuple(cells[i] for i in columns) for _, cells in lines if len(cells) > max(columns)
    )
    numbers = [row for key in wanted for row in rows_of.get(key, ())]
    unmet = [" box ".join(key) for key in wanted if key not in rows_of]
    if not numbers:
        raise FgvcError(
            f"{only} lists none of the {len(table.rows):,} rows: "
            f"it has {unmet[0] if unmet else 'nothing'!r}, the rows have {table.rows.path[0]!r}.",
            "Make it of the same predictions: fgvc select PREDS --out todo.csv",
        )
    if unmet:
        say(f"{len(unmet):,} of {len(wanted):,} lines of {only} met no row (such as {unmet[0]}).")
    return take_rows(table, numbers), numbers


def take_rows(table: Table, numbers: list[int]) -> Table:
    """The rows of these numbers, in their order."""
    rows = table.rows
    columns: dict[str, Any] = {name: [getattr(rows, name)[i] for i in numbers] for name in TEXTS}
    columns |= {name: getattr(rows, name)[numbers] for name in ARRAYS}
    columns["more"] = {
        name: [values[i] for i in numbers] if isinstance(values, list) else values[numbers]
        for name, values in rows.more.items()
    }
    return replace(table, rows=replace(rows, **columns))


class Picked:
    """Rows of a data set by their numbers, each read when it is asked for."""

    def __init__(self, data: Any, numbers: Sequence[int]):
        self._data, self._numbers = data, numbers
        self.shape = (len(numbers), *data.shape[1:])

    def __getitem__(self, row: int) -> Any:
        return self._data[self._numbers[row]]


@dataclass(frozen=True)
class Decision:
    """What somebody says of a row."""

    label: str
    box: Box | None
    who: str
    when: str


class Reviewed:
    """``reviewed.csv``, in memory and on disk: every change is written at once, whole.

    Lines of images that are no rows of this table stay as they are. A file that another program changed is
    read again before it is written.

    Args:
        out: the file; it need not be there.
        folder: see ``image_folder``.

    Raises:
        FgvcError: the file that is there is not of a review.
    """

    def __init__(self, out: Path, table: Table, folder: str):
        self.out, self.table = out, table
        self.decisions: dict[int, Decision] = {}
        self._paths = [image_path(folder, path) for path in table.rows.path]
        self._ids = box_ids(table)
        self._columns = review_columns(table)
        self._others: list[list[str]] = []
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self.decisions) + len(self._others)

    def update(self, changes: Any) -> None:
        """Take over what the page sends, all of it or nothing.

        Raises:
            ValueError: something in it cannot be; its text is one line.
            FgvcError: the file cannot be written.
        """
        if not isinstance(changes, list):
            raise ValueError(f"expected a list of decisions, got {_shown(changes)}")
        read = []
        for number, change in enumerate(changes, 1):
            try:
                read.append(self._parse(change))
            except ValueError as error:
                raise ValueError(f"decision {number}: {error}") from error
        with self._lock:
            if self._seen() != self._stamp:
                self._read()
            before = dict(self.decisions)
            for row, decision in read:
                if decision is None:
                    self.decisions.pop(row, None)
                else:
                    self.decisions[row] = decision
            try:
                self._write()
            except FgvcError:
                self.decisions = before
                raise

    def close(self) -> None:
        """Wait for a write in progress; later ones are refused."""
        self._lock.acquire()

    def document(self) -> list[dict[str, Any]]:
        """The decisions as the page takes them."""
        with self._lock:
            if self._seen() != self._stamp:
                self._read()
            return [{"row": row, **vars(decision)} for row, decision in sorted(self.decisions.items())]

    def _parse(self, change: Any) -> tuple[int, Decision | None]:
        names = {"row", "label", "box", "who", "when"}
        if not isinstance(change, dict) or not {"row", "label"} <= set(change) <= names:
            raise ValueError(f"expected {{row, label, box, who, when}}, got {_shown(change)}")
        row, rows = change["row"], self.table.rows
        if type(row) is not int or not 0 <= row < len(rows):
            raise ValueError(f"row got {_shown(row)}, expected a number from 0 to {len(rows) - 1}")
        if change["label"] is None:
            return row, None
        if rows.topk_index[row, 0] < 0:
            raise ValueError(f"row {row} has no prediction to judge")
        label = _text("label", change["label"])
        if not label:
            raise ValueError("label is empty, expected a class; null takes a decision back")
        when = change.get("when")
        if not isinstance(when, str) or not _WHEN.fullmatch(when):
            raise ValueError(f"when got {_shown(when)}, expected a time such as 2026-05-01T12:00:00Z")
        width, height = rows.size[row].tolist()
        box = _box(change.get("box"), width, height)
        return row, Decision(label, box, _text("who", change.get("who", "")), when)

    def _seen(self) -> tuple[int, ...] | None:
        """What tells whether the file is still the one that was read or written last."""
        try:
            stat = os.stat(self.out)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> None:
        stamp = self._seen()
        decisions: dict[int, Decision] = {}
        others: list[list[str]] = []
        if stamp is not None:
            header, lines = _read_csv(self.out)
            if tuple(header) != self._columns:
                raise FgvcError(
                    f"{self.out} is there and no review of these rows: line 1 is {','.join(header)[:80]!r}, "
                    f"expected {','.join(self._columns)}.",
                    "Move it away, or write the page into another folder: --out",
                )
            free: dict[tuple[str, ...], list[int]] = {}
            for row in reversed(range(len(self._paths))):
                free.setdefault((self._paths[row], *self._ids[row : row + 1]), []).append(row)
            for number, cells in lines:
                if len(cells) != len(self._columns):
                    raise FgvcError(
                        f"{self.out} line {number}: {len(cells)} values, expected {len(self._columns)}.",
                        f"They are {','.join(self._columns)}.",
                    )
                rows = free.get((cells[0], *cells[len(COLUMNS) :]))
                if rows and cells[5].strip():
                    row = rows.pop()
                    decision = self._decision(cells, number)
                    drawn = decision.box and decision.box != _tenths(given_box(self.table, row))
                    decisions[row] = decision if drawn else replace(decision, box=None)
                else:
                    others.append(cells)
        self.decisions, self._others, self._stamp = decisions, others, stamp

    def _decision(self, cells: list[str], number: int) -> Decision:
        edges = [cell.strip() for cell in cells[1:5]]
        try:
            numbers = [float(edge) for edge in edges] if any(edges) else None
            box = _box(numbers, math.inf, math.inf)
        except ValueError as error:
            raise FgvcError(
                f"{self.out} line {number}: {','.join(edges)!r} is no box.",
                "Write x1,y1,x2,y2 in pixels, or leave all four empty.",
            ) from error
        return Decision(cells[5].strip(), box, cells[8], cells[9])

    def _write(self) -> None:
        with AtomicFile(self.out, overwrite=True) as stream:
            csv_lines(stream, self._lines())
        self._stamp = self._seen()

    def _lines(self) -> Iterator[list[str]]:
        rows, classes = self.table.rows, self.table.info.classes
        yield list(self._columns)
        for row, decision in sorted(self.decisions.items()):
            box = decision.box or _tenths(given_box(self.table, row))
            edges = [f"{edge:.1f}" for edge in box] if box else [""] * 4
            best = int(rows.topk_index[row, 0])
            old = [classes[best], f"{rows.topk_prob[row, 0]:.6f}"] if best >= 0 else ["", ""]
            said = [decision.label, *old, decision.who, decision.when, *self._ids[row : row + 1]]
            yield [self._paths[row], *edges, *said]
        yield from self._others


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the lines below with their numbers; a byte order mark is no cell's.

    Raises:
        FgvcError: it cannot be read, or is no CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, [from_cell(cell) for cell in cells]) for cells in reader if cells]
    except OSError as error:
        raise FgvcError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.") from error
    return [name.strip().lower() for name in header], lines


def _tenths(box: GivenBox | None) -> Box | None:
    """Its edges as a review writes them."""
    if box is None:
        return None
    x1, y1, x2, y2 = (float(f"{edge:.1f}") for edge in box.edges)
    return x1, y1, x2, y2


def _shown(value: Any) -> str:
    """A value of JSON in a line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MOST or _CONTROL.search(value):
        raise ValueError(
            f"{name} got {_shown(value)}, expected a text of one line, {TEXT_MOST} letters at most"
        )
    return value.strip()


def _box(value: Any, width: float, height: float) -> Box | None:
    if value is None:
        return None
    plain = isinstance(value, list) and all(
        type(edge) in (int, float) and math.isfinite(edge) for edge in value
    )
    if plain and len(value) == 4:
        x1, y1, x2, y2 = (float(edge) for edge in value)
        if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
            return x1, y1, x2, y2
    raise ValueError(f"box got {_shown(value)}, expected [x1, y1, x2, y2] within {width} x {height} px")


class ReviewServer(ThreadingHTTPServer):
    """Shows one page under an address that cannot be guessed, and writes one file.

    Only programs of this machine reach it, and of these only who knows the token, which is a part of the
    address. A browser is held to names of this machine, so that no foreign site may ask through it.

    Args:
        page: what it shows.
        port: 0 takes a free one.

    Raises:
        FgvcError: the port is taken, or not to be had.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, page: Path, reviewed: Reviewed, port: int = 0):
        self.page, self.reviewed = page, reviewed
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise FgvcError(
                f"Port {port} of this machine cannot be used: {error.strerror or error}.",
                "Name another --port, or leave it out for a free one.",
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "fgvc", ""
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page says what is saved."""

    def _answer(self, status: HTTPStatus, body: bytes | str, kind: str = "text/plain; charset=utf-8") -> None:
        data = f"{body}\n".encode(errors="backslashreplace") if isinstance(body, str) else body
        self._head(status, kind, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: HTTPStatus, kind: str, length: int, **more: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "frame-ancestors 'none'",
        }
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()

    def _route(self) -> None:
        refused = self._refusal()
        if refused:
            self._answer(HTTPStatus.FORBIDDEN, refused)
            return
        name = urlsplit(self.path).path.split("/", 2)[2:]
        known = {"": ("GET", "HEAD"), "decisions": ("GET", "HEAD", "POST")}
        if name == []:  # the address without its last slash, from which the page would ask elsewhere
            self._head(HTTPStatus.PERMANENT_REDIRECT, "text/plain", 0, Location=f"/{self.server.token}/")
        elif name[0] not in known:
            self._answer(HTTPStatus.NOT_FOUND, f"There is nothing at {self.path[:80]}.")
        elif self.command not in known[name[0]]:
            allowed = ", ".join(known[name[0]])
            body = f"{self.command} is not answered here, expected {allowed}.\n".encode()
            self._head(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", len(body), Allow=allowed)
            self.wfile.write(body)
        elif name[0] == "":
            self._page()
        elif self.command == "POST":
            self._save()
        else:
            rows = self.server.reviewed.document()
            document = json.dumps({"who": _user(), "rows": rows}).encode()
            self._answer(HTTPStatus.OK, document, "application/json")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _route

    def _refusal(self) -> str | None:
        """Why this request is none of the page's."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return f"Host got {host[:80]!r}, expected 127.0.0.1."
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return f"Origin got {origin[:80]!r}, expected this page's."
        token = urlsplit(self.path).path.split("/", 2)[1:2]
        if not token or not hmac.compare_digest(token[0].encode(), self.server.token.encode()):
            return "The token is missing or wrong; open the address that fgvc report printed."
        return None

    def _page(self) -> None:
        try:
            with self.server.page.open("rb") as stream:
                self._head(HTTPStatus.OK, "text/html; charset=utf-8", os.fstat(stream.fileno()).st_size)
                if self.command != "HEAD":
                    shutil.copyfileobj(stream, self.wfile)
        except FileNotFoundError:
            self._answer(HTTPStatus.NOT_FOUND, f"{self.server.page} is gone; make it again with fgvc report.")

    def _save(self) -> None:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        length = self.headers.get("Content-Length", "")
        if kind != "application/json":
            self._drain(length)
            self._answer(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type got {kind!r}, expected application/json."
            )
        elif not length.isdecimal():
            self._answer(HTTPStatus.LENGTH_REQUIRED, f"Content-Length got {length!r}, expected bytes.")
        elif int(length) > MAX_BODY:
            self._drain(length)
            self._answer(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{int(length):,} bytes, expected {MAX_BODY:,} at most."
            )
        else:
            body = self.rfile.read(int(length))
            try:
                self.server.reviewed.update(json.loads(body))
            except (ValueError, RecursionError) as error:
                self._answer(HTTPStatus.BAD_REQUEST, " ".join(str(error).split()) or "no JSON")
            except FgvcError as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, " ".join(str(error).split()))
            else:
                saved = json.dumps({"reviewed": len(self.server.reviewed)}).encode()
                self._answer(HTTPStatus.OK, saved, "application/json")

    def _drain(self, length: str) -> None:
        """Read what is refused, as far as that is not much: else the answer is lost with the connection."""
        left = min(int(length) if length.isdecimal() else 0, 16 * MAX_BODY)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)


def _user() -> str:
    """Who works here, as the system calls them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def serve(server: ReviewServer, messages: Messages) -> None:
    """Answer until Ctrl-C."""
    messages.print(f"Review at {server.url} (on this machine; {socket.gethostname()}). Ctrl-C ends.")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        server.reviewed.close()
    messages.note(f"{len(server.reviewed):,} images in {server.reviewed.out}.")
