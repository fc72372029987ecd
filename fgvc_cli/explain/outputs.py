"""Pictures of a folder of images, and their maps as numbers: folders, or one HDF5 file, whole or not at all.

Legend of the HDF5 file: N images, h w rows and columns of a map.

    path status error   (N,) UTF-8 strings; ``ok`` is the status of an image that was explained
    size                (N, 2) int32: width, height of the upright image, pixels
    top_index           (N,) int32: the most probable class, into ``class_names``; -1 without one
    target_index        (N,) int32: the class that the maps speak for, where they speak for one
    <map>               (N, h, w) float16 in [0, 1] over the model's input; NaN without one

Of several models, all but the first four lie in a group per model, which has the model's attributes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from PIL import Image

from fgvc_cli import __version__
from fgvc_cli.errors import FgvcError
from fgvc_cli.explain.explainer import Explainer, LabelledExplanation
from fgvc_cli.files import AtomicFile, reason
from fgvc_cli.formats.csv_rows import csv_lines
from fgvc_cli.formats.h5 import H5Rows
from fgvc_cli.formats.outputs import FolderSink, safe_name
from fgvc_cli.formats.rows import Block, as_text
from fgvc_cli.sources.images import OK

INDEX = "index.csv"


class PicturesFolder(FolderSink):
    """One picture per image, named after it, and a table of all.

    Args:
        ending: of the pictures.

    Raises:
        FgvcError: on entering, adding or leaving: it cannot be written.
    """

    def __init__(self, out: Path, ending: str = ".png"):
        super().__init__(out)
        self.ending = ending

    def add(self, name: str, row: int, picture: bytes) -> str:
        """Write the picture of an image, ``row`` being its number from 0; the name it has got.

        ``birds/a.jpg`` is drawn as ``birds/a.jpg`` too; ``a.png`` beside it, as that name is taken, as
        ``birds/a.png.jpg``.
        """
        whole = safe_name(name)
        folder, slash, file = whole.rpartition("/")
        short = f"{folder}{slash}{PurePosixPath(file).stem}{self.ending}"
        taken = os.path.lexists(self._filling / short)
        return self._put(f"{whole}{self.ending}" if taken else short, row, picture)

    def add_table(self, rows: list[list[str]], name: str = INDEX) -> None:
        """A table of all, header first."""
        try:
            with (self._filling / name).open("xb") as stream:
                csv_lines(stream, rows)
        except OSError as error:
            raise self._explain(error) from error

    def _encode(self, block: Block, row: int) -> bytes:
        """Nothing: pictures are added one by one, not made of rows."""
        return b""

    def _explain(self, error: OSError) -> FgvcError:
        return FgvcError(
            f"Could not write {self.out}: {reason(error)}; it is left as it was.",
            "Free space, check permissions, or name another folder.",
        )


class PartsFolder(PicturesFolder):
    """Every map as a 16-bit grey PNG in its own cells over the model's input: 65535 is 1."""

    def __init__(self, out: Path):
        super().__init__(out)
        self._count = 0

    def begin(self, models: object) -> None:
        """Nothing is shared."""

    def add_maps(self, name: str, explained: Sequence[LabelledExplanation], **_row: Any) -> None:
        """Write the maps (h, w) in [0, 1] of the next image, each as ``<name>.<map>.png``; of several
        models as ``<name>.<label>.<map>.png``."""
        row, self._count = self._count, self._count + 1
        for each in explained:
            label = f"{safe_name(each.label).replace('/', '_')}." if each.label else ""
            for kind, heat in each.explanation.maps.items():
                grey = np.round(np.nan_to_num(heat).clip(0, 1) * 65535).astype(np.uint16)
                stream = io.BytesIO()
                Image.fromarray(grey).save(stream, "PNG", compress_level=1)
                self._put(f"{safe_name(as_text(name))}.{label}{kind}{self.ending}", row, stream.getvalue())


SCHEMA_VERSION = 1
_SHARED = ("path", "status", "error", "size")
_BLOCK = 64
"""Images that wait to be written together."""


class MapsFile:
    """A context manager: the file appears complete when the block ends well, or not at all.

    Args:
        out: the file.
        overwrite: replace one that is there.

    Raises:
        FgvcError: it exists and may not be replaced, or cannot be written.
    """

    def __init__(self, out: Path, *, overwrite: bool = False):
        self._file = AtomicFile(out, overwrite=overwrite)
        self._rows: H5Rows | None = None
        self._classes: dict[str, dict[str, int]] = {}
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._stream = self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure: OSError | None = None
        if self._rows is not None:
            try:
                if kind is None:
                    self._flush()
            except OSError as caught:
                failure = caught
            try:
                self._rows.close()
            except OSError as caught:
                failure = failure or caught
        if failure is not None and kind is None:
            explained = self._file.explain(failure)
            self._file.__exit__(FgvcError, explained, None)
            raise explained from failure
        self._file.__exit__(kind, error, trace)

    def begin(self, models: Mapping[str, Explainer]) -> None:
        """Called once, before the first image, with the models by label; one model needs none."""
        self._rows = H5Rows(self._stream.name)
        file = self._rows.file
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["fgvc_version"] = __version__
        for name in _SHARED[:3]:
            self._rows.add(name, (), h5py.string_dtype())
        self._rows.add("size", (2,), np.int32)
        for label, explainer in models.items():
            place = file.create_group(_group(label)) if label else file
            for name, value in _attributes(explainer).items():
                place.attrs[name] = value
            names = explainer.checkpoint.classes
            self._classes[label] = {name: index for index, name in enumerate(names)}
            self._rows.add(_place(label, "top_index"), (), np.int32)
            if any(method.asks_class for method in explainer.methods):
                self._rows.add(_place(label, "target_index"), (), np.int32)

    def add_maps(
        self,
        name: str,
        explained: Sequence[LabelledExplanation],
        *,
        size: tuple[int, int] = (0, 0),
        status: str = OK,
        error: str = "",
    ) -> None:
        """The next image; nothing explained where it could not be read.

        Raises:
            FgvcError: the disk is full.
        """
        row: dict[str, Any] = {"path": as_text(name), "status": status, "error": as_text(error), "size": size}
        for each in explained:
            explanation, classes = each.explanation, self._classes[each.label]
            row[_place(each.label, "top_index")] = classes[explanation.top[0][0]]
            if explanation.why is not None:
                row[_place(each.label, "target_index")] = classes[explanation.why[0]]
            for kind, heat in explanation.maps.items():
                row[_place(each.label, kind)] = heat.astype(np.float16)
        self._waiting.append(row)
        if len(self._waiting) >= _BLOCK:
            try:
                self._flush()
            except OSError as failure:
                raise self._file.explain(failure) from failure

    def _flush(self) -> None:
        if self._rows is None or not self._waiting:
            return
        rows, self._waiting = self._waiting, []
        columns: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            known = next(row[name] for row in rows if name in row)
            if name not in self._rows:
                # Its cells are known from the first image that has it; those before it stay NaN.
                self._rows.add(name, known.shape, np.float16)
            blank = np.full(np.shape(known), np.nan, np.float16) if isinstance(known, np.ndarray) else -1
            columns[name] = [row.get(name, blank) for row in rows]
        for label in self._classes:
            for name in ("top_index", "target_index"):
                if (place := _place(label, name)) in self._rows:
                    columns.setdefault(place, [-1] * len(rows))
        self._rows.append(len(rows), columns)


def _group(label: str) -> str:
    name = as_text(label).replace("/", "_").replace("\0", "_")
    return f"{name}_" if name in (*_SHARED, ".") else name


def _place(label: str, name: str) -> str:
    return f"{_group(label)}/{name}" if label else name


def _attributes(explainer: Explainer) -> dict[str, Any]:
    """What a file says of a model; no ``target`` is the likeliest class, no ``against`` all others."""
    checkpoint, question = explainer.checkpoint, explainer.question
    named = {
        name: "" if index is None else checkpoint.classes[index]
        for name, index in (("target", question.target), ("against", question.against))
    }
    return {
        "model": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "class_names": np.array(list(checkpoint.classes), dtype=h5py.string_dtype()),
        "preprocessing": json.dumps(checkpoint.preprocess.model_dump()),
        "methods": ",".join(method.name for method in explainer.methods) or "own",
        **named,
    }
