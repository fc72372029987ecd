"""Reading back what ``predict.sink_h5`` writes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgvc_cli.config import Preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.blocks import TEXTS
from fgvc_cli.predict.origin import Origin
from fgvc_cli.predict.rows import Block, Extra, RunInfo
from fgvc_cli.predict.sink_h5 import SCHEMA_VERSION
from fgvc_cli.report.table import HOW_TO, Table, check_count
from fgvc_cli.sections import build

NEEDED = (*TEXTS, "size", "topk_index", "topk_prob", "box")
ATTRIBUTES = ("schema_version", "class_names", "preprocessing")
CACHE_BYTES = 8 << 20
"""Of decompressed chunks, per data set: rows read one after another decompress each chunk once."""


def open_h5(path: Path) -> h5py.File:
    """The file, read-only, to be closed.

    Raises:
        FgvcError: it cannot be opened.
    """
    with reading(path):
        return h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Round each read of the file: what h5py raises becomes the user's line.

    Raises:
        FgvcError: something in it cannot be read.
    """
    try:
        yield
    # h5py raises any of these for a file that is cut short, damaged, or built to confuse.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FgvcError(f"{path} cannot be read as HDF5: {reason}.", HOW_TO) from error


def read_h5(path: Path) -> Table:
    """All rows but their maps, crops, embeddings and logits.

    Raises:
        FgvcError: damaged, not written by fgvc, by a newer fgvc, or too many rows.
    """
    with open_h5(path) as file, reading(path):
        _check(path, file)
        rows = len(file["path"])
        check_count(path, rows)
        columns: dict[str, Any] = {name: file[name].asstr()[:].tolist() for name in TEXTS}
        columns |= {name: file[name][:] for name in ("size", "topk_index", "topk_prob", "box")}
        columns["parts"] = file["parts"][:] if "parts" in file else np.empty((rows, 0, 4), np.float32)
        classes = tuple(str(name) for name in file.attrs["class_names"])
        known: tuple[Extra, ...] = ("attention", "crop")
        info = RunInfo(
            model=str(file.attrs.get("model", "")),
            weights_sha256=str(file.attrs.get("weights_sha256", "")),
            classes=classes,
            preprocess=_preprocess(path, file),
            top_k=columns["topk_index"].shape[1],
            parts=columns["parts"].shape[1],
            # An extra that no row had has no width.
            extras=tuple(extra for extra in known if extra in file and 0 not in file[extra].shape),
            settings=_settings(path, file),
        )
        origin = _origin(file)
    if columns["topk_index"].max() >= len(classes):
        raise FgvcError(f"{path} is damaged: it names class {columns['topk_index'].max()} of {len(classes)}.")
    return Table(path, Block(first=0, **columns), info, origin)


def _settings(path: Path, file: h5py.File) -> dict[str, Any]:
    try:
        return dict(json.loads(file.attrs.get("settings", "{}")))
    except (TypeError, ValueError) as error:
        raise FgvcError(f"{path} is damaged: its settings are no JSON.") from error


def _origin(file: h5py.File) -> Origin | None:
    if "sources" not in file.attrs or "working_folder" not in file.attrs:
        return None
    sources = tuple(str(source) for source in file.attrs["sources"])
    return Origin(sources, str(file.attrs["working_folder"]))


def _check(path: Path, file: h5py.File) -> None:
    """Whether fgvc predict wrote this, in a form that is known here."""
    missing = [name for name in NEEDED if not isinstance(file.get(name), h5py.Dataset)]
    missing += [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise FgvcError(f"{path} is not what fgvc predict writes: it has no {missing[0]}.", HOW_TO)
    if (version := file.attrs["schema_version"]) != SCHEMA_VERSION:
        message = f"{path} has the schema {version}, this fgvc reads {SCHEMA_VERSION}."
        raise FgvcError(message, "Predict again, or use the fgvc that wrote it.")
    rows, top_k = len(file["path"]), file["topk_index"].shape[-1:]
    shapes: dict[str, tuple[int, ...]] = {name: (rows,) for name in (*TEXTS, "crop")}
    shapes |= {"size": (rows, 2), "box": (rows, 4), "topk_index": (rows, *top_k), "topk_prob": (rows, *top_k)}
    for name, shape in shapes.items():
        if name in file and (file[name].shape != shape or 0 in shape[1:]):
            raise FgvcError(f"{path} is damaged: {name} has the shape {file[name].shape}, for {rows} rows.")
    for name in ("parts", "attention"):
        if name in file and len(file[name]) != rows:
            raise FgvcError(f"{path} is damaged: {name} has {len(file[name])} rows of {rows}.")


def _preprocess(path: Path, file: h5py.File) -> Preprocess:
    try:
        return build(Preprocess, json.loads(file.attrs["preprocessing"]))
    except (TypeError, ValueError) as error:
        raise FgvcError(f"{path} is damaged: its preprocessing is no JSON.") from error
