"""One row per image, as an object for people and in columns for files; blocks of rows cut, joined and
replaced; the tables that are read back; what a format is (``Sink``).

Legend: n rows of a block, N rows of a file, k predictions per row, P parts, K classes, D embedding width,
h w of a map.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self

import numpy as np

from fgvc_cli import __version__
from fgvc_cli.config import Preprocess, stored_options, stored_preprocess
from fgvc_cli.data.geometry import Box
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.sources.images import OK
from fgvc_cli.store import without_secrets

Extra = Literal["attention", "crop", "embedding", "logits"]
"""What a run stores beside its predictions, on request."""

UNSURE = "unsure"
"""Status of a row whose best probability is below the run's ``min_prob`` or the threshold of its class; its
predictions are kept."""

UNKNOWN = "unknown"
"""Status of a row whose image is unlike those of the training: none of the classes. Its predictions are kept;
it goes before ``unsure``."""

WITH_PREDICTION = (OK, UNSURE, UNKNOWN)
"""Statuses of rows that have one, the most trusted first."""

GIVEN_BOX = "given_box"
"""Column of the box that a row is of."""
NO_BOX = "no_box"
"""Status of an image of which no box was given, where boxes were; nothing has failed."""


TOLD_ABOVE = 0.5
"""A multi-label model tells the labels that are more probable than this."""

SCHEMA_VERSION = 2
"""Of HDF5 and Parquet files; 1 had no ``Column`` beyond predictions and boxes. Both are read."""

Value = str | float | Box
"""What a cell of a ``Column`` holds."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that only some runs have, the same in every format. A row without a value for it holds an
    empty text, NaN, or a box of NaN; rows without a prediction may have one."""

    name: str
    kind: Literal["text", "number", "box"]
    description: str
    decimals: int = 6
    """Of a number as text."""
    edges: str = ""
    """What the four columns of a box begin with in a table: ``in`` gives ``in_x1`` to ``in_y2``."""
    behind_path: bool = False
    """It stands behind ``path`` in tables, else behind all others."""

    @property
    def headers(self) -> list[str]:
        """Its columns in a table."""
        return box_headers(self.edges) if self.kind == "box" else [self.name]

    def cells(self, value: Value | None) -> list[str]:
        """A value as text, as ``headers``."""
        if isinstance(value, tuple):
            return [f"{edge:.1f}" for edge in value]
        if isinstance(value, str):
            return [value]
        return [""] * len(self.headers) if value is None else [f"{value:.{self.decimals}f}"]

    def parse(self, cells: Sequence[str]) -> Value | None:
        """Back from ``cells``.

        Raises:
            ValueError: no numbers.
        """
        if not cells[0]:
            return None
        if self.kind == "box":
            x1, y1, x2, y2 = map(float, cells)
            return (x1, y1, x2, y2)
        return cells[0] if self.kind == "text" else float(cells[0])

    def values(self, values: Sequence[Value | None]) -> list[str] | np.ndarray:
        """Values as a column of a ``Block``."""
        if self.kind == "text":
            return ["" if value is None else str(value) for value in values]
        blank: Any = np.nan if self.kind == "number" else (np.nan,) * 4
        shape, dtype = ((), np.float64) if self.kind == "number" else ((4,), np.float32)
        return np.array([blank if v is None else v for v in values], dtype).reshape(len(values), *shape)

    def value(self, values: list[str] | np.ndarray, row: int) -> Value | None:
        """The value of a row of ``values``; None where it has none."""
        found = values[row]
        if isinstance(found, str):
            return found or None
        if self.kind == "box":
            x1, y1, x2, y2 = found.tolist()
            return None if np.isnan(x1) else (x1, y1, x2, y2)
        return None if np.isnan(found) else float(found)


COLUMNS = {
    column.name: column
    for column in (
        Column("box_id", "text", "of the given box within its image", behind_path=True),
        Column(GIVEN_BOX, "box", "what was looked at, as box", decimals=1, edges="in", behind_path=True),
        Column("given_label", "text", "what the detector takes it for", behind_path=True),
        Column("given_score", "number", "the detector's confidence", decimals=4, behind_path=True),
        Column("given_path", "text", "how the file of boxes calls the image", behind_path=True),
        Column("date", "text", "when the image was taken, ISO 8601"),
        Column("latitude", "number", "degrees north"),
        Column("longitude", "number", "degrees east"),
        Column("camera", "text", "make and model"),
        Column("group", "text", "images taken together"),
        Column("group_label", "text", "the answer for all images of the group"),
        Column("group_prob", "number", "its probability"),
        Column("rank", "text", "of the taxonomy, the finest that reaches the wanted probability"),
        Column("rank_label", "text", "the name at that rank"),
        Column("rank_prob", "number", "its probability"),
        Column("novelty", "number", "how unlike the training images; 1 is the threshold"),
        Column("data_label", "text", "the label that the data give it"),
        Column("label_quality", "number", "how likely that label is right"),
    )
}
"""All there are, in the order of tables."""

BOX_COLUMNS = ("box_id", GIVEN_BOX, "given_label", "given_score", "given_path")
"""Of a run over given boxes."""


def box_headers(name: str) -> list[str]:
    """The four columns of a box in a table."""
    return [f"{name}_{edge}" for edge in ("x1", "y1", "x2", "y2")]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image: a prediction, or why there is none."""

    path: str
    """The name of the image, with forward slashes."""
    status: str = OK
    """``ok``; ``unsure`` or ``unknown``, which keep everything below; or one word of
    ``images.FailureStatus``."""
    error: str = ""
    """One line for people."""
    width: int | None = None
    """Of the upright image, pixels."""
    height: int | None = None
    labels: tuple[str, ...] = ()
    """The k most probable classes, best first."""
    probs: tuple[float, ...] = ()
    """Their probabilities."""
    box: Box | None = None
    """Object box, xyxy pixels of the upright image, end-exclusive; None from a model without boxes."""
    parts: tuple[Box, ...] = ()
    """Part boxes, as ``box``, the most attended first; none from a model without parts, or where a cascade
    stopped before them."""
    more: Mapping[str, Value] = field(default_factory=dict)
    """Of ``COLUMNS``, those that the row has a value for."""

    @property
    def labels_there(self) -> tuple[str, ...]:
        """Of a multi-label model: the labels more probable than not, among the k."""
        return tuple(name for name, prob in zip(self.labels, self.probs, strict=True) if prob > TOLD_ABOVE)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return has_prediction(self.status)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns a table of rows has."""

    top_k: int
    """k: predictions per row."""
    parts: int = 0
    """P: part boxes per row."""
    multi_label: bool = False
    """Whether there is a column ``labels``."""
    columns: tuple[str, ...] = ()
    """Of ``COLUMNS``, in their order."""

    def known(self, *, behind_path: bool) -> list[Column]:
        """Those of ``columns`` behind the path, or behind all others."""
        return [COLUMNS[name] for name in self.columns if COLUMNS[name].behind_path == behind_path]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink may store once for a whole run; equal for runs whose rows are equal."""

    model: str
    weights_sha256: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    top_k: int
    """k: predictions per row, at most the number of classes."""
    parts: int = 0
    """P: part boxes per row; 0 for a model without parts."""
    extras: tuple[Extra, ...] = ()
    """What each row carries beside its prediction."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All else that changes a row, as plain JSON values: looks, cascade, min_prob, precision, decoding."""
    columns: tuple[str, ...] = ()
    """Of ``COLUMNS``, in their order."""

    @property
    def multi_label(self) -> bool:
        """Whether each probability stands alone, and tables have a column ``labels``."""
        return bool(self.settings.get("multi_label", False))

    @property
    def layout(self) -> Layout:
        """The columns of its tables."""
        return Layout(self.top_k, self.parts, self.multi_label, self.columns)


@dataclass(slots=True)
class Block:
    """Consecutive rows in columns. A row without a prediction holds 0 in ``size``, -1 in ``topk_index``, NaN
    elsewhere; so does a value that the model does not give."""

    first: int
    """Number of its first row in the run, from 0."""
    path: list[str]
    status: list[str]
    error: list[str]
    size: np.ndarray
    """int32 (n, 2): width, height of the upright image."""
    topk_index: np.ndarray
    """int32 (n, k)."""
    topk_prob: np.ndarray
    """float32 (n, k)."""
    box: np.ndarray
    """float32 (n, 4)."""
    parts: np.ndarray
    """float32 (n, P, 4)."""
    attention: np.ndarray | None = None
    """float16 (n, h, w) in [0, 1] over the model's input, where asked for."""
    crop: list[bytes] | None = None
    """The object cut from the image as JPEG, empty without one; where asked for."""
    embedding: np.ndarray | None = None
    """float32 (n, D), where asked for."""
    logits: np.ndarray | None = None
    """float32 (n, K): log of the fused probabilities, where asked for."""
    more: dict[str, list[str] | np.ndarray] = field(default_factory=dict)
    """Of ``COLUMNS``: texts as a list of n, numbers as float64 (n,), boxes as float32 (n, 4)."""

    def __len__(self) -> int:
        return len(self.path)

    def column(self, name: str) -> list[str] | np.ndarray:
        """One of ``COLUMNS``, blank where no row has a value."""
        found = self.more.get(name)
        return COLUMNS[name].values([None] * len(self)) if found is None else found

    def rows(self, info: RunInfo) -> Iterator[Row]:
        """The rows as objects."""
        for i, path in enumerate(self.path):
            values = {name: COLUMNS[name].value(column, i) for name, column in self.more.items()}
            more = {name: value for name, value in values.items() if value is not None}
            if self.topk_index[i, 0] < 0:
                yield Row(path, self.status[i], self.error[i], more=more)
                continue
            parts = (part for part in self.parts[i].tolist() if not np.isnan(part[0]))
            x1, y1, x2, y2 = self.box[i].tolist()
            yield Row(
                path=path,
                status=self.status[i],
                error=self.error[i],
                width=int(self.size[i, 0]),
                height=int(self.size[i, 1]),
                labels=tuple(info.classes[index] for index in self.topk_index[i]),
                probs=tuple(self.topk_prob[i].tolist()),
                box=None if np.isnan(x1) else (x1, y1, x2, y2),
                parts=tuple((a, b, c, d) for a, b, c, d in parts),
                more=more,
            )


TEXTS = ("path", "status", "error")
ARRAYS = ("size", "topk_index", "topk_prob", "box", "parts")
OPTIONAL_ARRAYS = ("attention", "embedding", "logits")
"""None where not asked for, and in a block of failed rows that never met the model."""


def as_text(name: str) -> str:
    """A name as every file of the run holds it: bytes that are not UTF-8 become ``\\udcXX``, XX in hex."""
    return name.encode(errors="backslashreplace").decode()


def has_prediction(status: str) -> bool:
    """Whether a row of this status has one."""
    return status in WITH_PREDICTION


def has_failed(status: str) -> bool:
    """Whether a row of this status should have a prediction and has none."""
    return not has_prediction(status) and status != NO_BOX


def block_bytes(block: Block) -> int:
    """Roughly what a block takes in memory."""
    columns = [getattr(block, name) for name in (*TEXTS, *ARRAYS, *OPTIONAL_ARRAYS, "crop")]
    return sum(
        column.nbytes if isinstance(column, np.ndarray) else sum(map(len, column))
        for column in (*columns, *block.more.values())
        if column is not None
    )


def cut(block: Block, start: int, stop: int) -> Block:
    """Rows start to stop, end-exclusive, without copying arrays."""
    rows = slice(start, stop)
    columns = {name: getattr(block, name) for name in (*TEXTS, *ARRAYS, *OPTIONAL_ARRAYS, "crop")}
    taken = {name: None if column is None else column[rows] for name, column in columns.items()}
    more = {name: column[rows] for name, column in block.more.items()}
    return Block(first=block.first + start, more=more, **taken)  # type: ignore[arg-type]


def join(blocks: Sequence[Block]) -> Block:
    """Blocks that follow each other as one."""
    ends = np.cumsum([len(block) for block in blocks]).tolist()
    starts = [0, *ends[:-1]]
    rows = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return _scatter(blocks, rows, ends[-1], blocks[0].first)


def interleave(blocks: Sequence[Block], first: int) -> Block:
    """n blocks as one whose row j is row j // n of block j % n; lengths fall by one at most."""
    rows = [slice(i, None, len(blocks)) for i in range(len(blocks))]
    return _scatter(blocks, rows, sum(map(len, blocks)), first)


def replace_rows(block: Block, rows: Sequence[int], new: Block) -> None:
    """Put row j of ``new`` in the place of row ``rows[j]``."""
    texts = [(getattr(block, name), getattr(new, name)) for name in TEXTS]
    for name, values in new.more.items():
        if isinstance(values, list):
            texts.append((block.more.setdefault(name, [""] * len(block)), values))
        else:
            column = np.array(block.more.get(name, _blank(len(block), values)))
            column[list(rows)] = values
            block.more[name] = column
    for old, replacing in texts:
        for row, text in zip(rows, replacing, strict=True):
            old[row] = text
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        values = getattr(new, name)
        if values is None:
            continue
        if getattr(block, name) is None:
            setattr(block, name, _blank(len(block), values))
        # Arrays read from a file may be read-only views.
        column = np.array(getattr(block, name))
        column[list(rows)] = values
        setattr(block, name, column)
    if new.crop is not None:
        block.crop = block.crop or [b""] * len(block)
        for row, crop in zip(rows, new.crop, strict=True):
            block.crop[row] = crop


def _scatter(blocks: Sequence[Block], rows: Sequence[slice], total: int, first: int) -> Block:
    """One block whose rows ``rows[b]`` are those of ``blocks[b]``."""
    columns = {
        name: _scatter_column([getattr(block, name) for block in blocks], rows, total)
        for name in (*TEXTS, *ARRAYS, *OPTIONAL_ARRAYS, "crop")
    }
    names = [name for name in COLUMNS if any(name in block.more for block in blocks)]
    more = {name: _scatter_column([block.more.get(name) for block in blocks], rows, total) for name in names}
    return Block(first=first, more=more, **columns)


def _scatter_column(columns: Sequence[Any], rows: Sequence[slice], total: int) -> Any:
    """A column whose rows ``rows[b]`` are those of ``columns[b]``, blank where that is None; None where all
    are."""
    known = next((column for column in columns if column is not None), None)
    if known is None:
        return None
    out: Any
    if isinstance(known, np.ndarray):
        out = _blank(total, known)
    else:
        filled = next((column for column in columns if column), [""])
        out = [type(filled[0])()] * total
    for column, where in zip(columns, rows, strict=True):
        if column is not None:
            out[where] = column
    return out


def _blank(total: int, like: np.ndarray) -> np.ndarray:
    fill = np.nan if like.dtype.kind == "f" else 0
    return np.full((total, *like.shape[1:]), fill, like.dtype)


def rows_block(rows: Sequence[Row], first: int, info: RunInfo) -> Block:
    """Put rows into columns, without extras.

    Raises:
        KeyError: a label that is not a class of the run.
    """
    index = {label: i for i, label in enumerate(info.classes)}
    n, k = len(rows), info.top_k
    block = Block(
        first=first,
        path=[row.path for row in rows],
        status=[row.status for row in rows],
        error=[row.error for row in rows],
        size=np.zeros((n, 2), np.int32),
        topk_index=np.full((n, k), -1, np.int32),
        topk_prob=np.full((n, k), np.nan, np.float32),
        box=np.full((n, 4), np.nan, np.float32),
        parts=np.full((n, info.parts, 4), np.nan, np.float32),
        more={name: COLUMNS[name].values([row.more.get(name) for row in rows]) for name in info.columns},
    )
    for i, row in enumerate(rows):
        if not row.ok:
            continue
        block.size[i] = row.width, row.height
        block.topk_index[i] = [index[label] for label in row.labels]
        block.topk_prob[i] = row.probs
        if row.box:
            block.box[i] = row.box
        if row.parts:
            block.parts[i, : len(row.parts)] = row.parts
    return block


READ_ROWS = 1000
"""Rows read from a file at a time."""

MAX_ROWS = 1_000_000
"""More than a browser holds at ease: each row takes about 0.5 KB of its memory."""

HOW_TO = "fgvc predict PHOTOS --out preds.h5 --maps --crops"


@dataclass(frozen=True)
class Table:
    """A prediction file, all in memory but for its maps and crops."""

    source: Path
    rows: Block
    """All rows, without extras."""
    info: RunInfo
    """``extras`` says what can be read of the file beside them; ``model`` is empty from a CSV or JSON lines,
    which tell none."""
    origin: Origin | None = None
    """Where the images were; only an HDF5 file knows."""

    @property
    def answered(self) -> np.ndarray:
        """(N,) bool: rows with a prediction."""
        return self.rows.topk_index[:, 0] >= 0


class OtherRun(Exception):
    """A file that holds rows of another run; its text says in what they differ."""


def check_count(path: Path, rows: int) -> None:
    """Raise FgvcError where a file holds no rows, or too many for a page."""
    if rows == 0:
        raise FgvcError(f"{path} holds no rows.", HOW_TO)
    if rows > MAX_ROWS:
        raise FgvcError(
            f"{path} holds {rows:,} rows; a page shows {MAX_ROWS:,} at most.",
            "Predict folder by folder, and make a report of each.",
        )


def build_table(path: Path, read: Callable[[], Iterator[Row]], layout: Layout) -> Table:
    """All rows of a file that names no classes of its own.

    Args:
        read: the rows, from the first on at each call. They are read twice, first for their classes, so that
            no more than columns stays in memory.
        layout: its P is the least that there is; a row may have more.

    Raises:
        FgvcError: no rows or too many; what ``read`` raises.
    """
    from fgvc_cli.data.labelled import natural_key

    names: set[str] = set()
    count, most = 0, layout.parts
    for row in read():
        names.update(row.labels)
        count += 1
        most = max(most, len(row.parts))
    check_count(path, count)
    classes = tuple(sorted(names, key=natural_key))
    info = RunInfo("", "", classes, Preprocess(), layout.top_k, most, columns=layout.columns)
    rows, blocks = read(), []
    while batch := tuple(islice(rows, READ_ROWS)):
        blocks.append(rows_block(batch, 0, info))
    return Table(path, join(blocks), info)


def build_blocks(rows: Iterator[Row], info: RunInfo) -> Iterator[Block]:
    """Rows of a run, read back from a file, in blocks without extras.

    Raises:
        OtherRun: a label is no class of the run.
    """
    first = 0
    while batch := tuple(islice(rows, READ_ROWS)):
        try:
            block = rows_block(batch, first, info)
        except KeyError as error:
            raise OtherRun(f"the model does not know {error}") from error
        first += len(block)
        yield block


def check_same_run(stored: dict[str, Any], info: RunInfo) -> None:
    """Raise OtherRun unless the rows of a file are of this run.

    What was recorded before there was a setting counts as what was done then; the batch size may differ,
    since what failed is read in other company than before anyway.

    Args:
        stored: what the file says of all its rows, of ``shared_by_rows``.

    Raises:
        OtherRun: another model, classes, preprocessing or settings, saying which.
        FgvcError: preprocessing that cannot be.
    """
    old, new = (_comparable(document) for document in (stored, shared_by_rows(info)))
    if old.pop("class_names") != new.pop("class_names"):
        raise OtherRun("its class_names is not that of this run")
    if change := first_change(old, new):
        name, was, now = change
        raise OtherRun(f"its {name} is {json.dumps(was)}, this run's {json.dumps(now)}")


def shared_by_rows(info: RunInfo) -> dict[str, Any]:
    """What a file says once of all its rows, as plain JSON values."""
    return {
        "model": info.model,
        "weights_sha256": info.weights_sha256,
        "class_names": list(info.classes),
        "preprocessing": info.preprocess.model_dump(),
        "settings": info.settings,
        "schema_version": SCHEMA_VERSION,
        "fgvc_version": __version__,
    }


def _comparable(shared: dict[str, Any]) -> dict[str, Any]:
    settings = shared["settings"]
    settings = settings | {"options": stored_options(settings.get("options", {})), "batch_size": None}
    preprocess = stored_preprocess(shared["preprocessing"]).model_dump()
    comparable = shared | {"settings": settings, "preprocessing": preprocess, "schema_version": None}
    return json.loads(json.dumps(comparable))


def first_change(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field, dotted where nested, that differs: (name, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if change := first_change(old.get(key), new.get(key), f"{name}.{key}" if name else key):
                return change
        return None
    return None if old == new else (name, old, new)


@dataclass(frozen=True, slots=True)
class Origin:
    """What was typed, and where."""

    sources: tuple[str, ...]
    """As typed; of a URL neither its password nor its query, which may be a key."""
    working_folder: str
    """Absolute: what relative sources, and the paths of rows that are as given, start at."""
    boxes: str = ""
    """The file of boxes, as typed."""

    @classmethod
    def of(cls, sources: Sequence[str], boxes: Path | None = None) -> Origin:
        """Of sources typed in the folder where this process works."""
        texts = tuple(as_text(without_secrets(source)) for source in sources)
        return cls(texts, as_text(os.getcwd()), as_text(str(boxes or "")))


TRY_AGAIN = "The rows are kept: free space or check the folder, then type the same command again."
"""After an output that could not be written: the parts it is made of go last of all."""


class Sink(Protocol):
    """Entering checks that the output can be written; leaving without an exception completes it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, info: RunInfo) -> None:
        """Called once, before the first row."""

    def write(self, block: Block) -> None:
        """The next rows, in the order of the images."""


class FileSink(ABC):
    """A sink into one file that appears complete or not at all (``AtomicFile``).

    Args:
        out: the file.
        overwrite: replace a file that is there.
        extras: what to store beside the predictions; formats without room for them ignore it.
        origin: where the images were; formats without attributes ignore it.

    Raises:
        FgvcError: the file exists and may not be replaced, or cannot be written: a full disk, a lost folder.
    """

    by_name = False
    """Whether the format writes by the name of the file, as HDF5 does, and not a stream from end to end."""

    def __init__(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        extras: Collection[Extra] = (),
        origin: Origin | None = None,
    ):
        self.extras = frozenset(extras)
        self.origin = origin
        self._file = AtomicFile(out, overwrite=overwrite, again=TRY_AGAIN, by_name=self.by_name)

    def __enter__(self) -> Self:
        self._stream: IO[bytes] = self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(complete=kind is None)
        except OSError as failure:
            explained = self._file.explain(failure)
            self._file.__exit__(FgvcError, explained, None)
            if kind is None:
                raise explained from failure
            return
        self._file.__exit__(kind, error, trace)

    def _close(self, *, complete: bool) -> None:  # noqa: B027 - most formats need nothing
        """What the format writes last."""

    def begin(self, info: RunInfo) -> None:
        """What the format writes first."""
        self._guard(self._begin, info)

    def write(self, block: Block) -> None:
        """The next rows."""
        self._guard(self._write, block)

    def _guard(self, step, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            step(*arguments)
        except OSError as error:
            raise self._file.explain(error) from error

    @abstractmethod
    def _begin(self, info: RunInfo) -> None: ...

    @abstractmethod
    def _write(self, block: Block) -> None: ...
