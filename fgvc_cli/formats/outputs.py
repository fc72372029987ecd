"""What a run writes at its end, checked before it begins: files by their endings, folders of crops and maps;
and which format reads a file back.

A folder has one file per row with a prediction, named after the row's path: ``birds/a.jpg`` becomes
``birds/a.jpg.jpg``, or ``birds/a.jpg.png`` for a map, so that ``a.jpg`` and ``a.png`` do not clash. Names
stay inside the folder: a leading slash goes, ``..`` becomes ``__``. A name that is taken or that the file
system refuses becomes ``row-17.jpg``, 17 being the number of the row from 0.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import io
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import check_folder, check_writable, reason, sync_folder
from fgvc_cli.formats.rows import (
    HOW_TO,
    TRY_AGAIN,
    Block,
    Extra,
    Origin,
    RunInfo,
    Sink,
    Table,
    as_text,
    has_prediction,
)
from fgvc_cli.store import StorePath, as_path, check_store, is_url, real_path

SINKS = {
    ".csv": ("csv_rows", "CsvSink"),
    ".jsonl": ("jsonl", "JsonlSink"),
    ".h5": ("h5", "H5Sink"),
    ".hdf5": ("h5", "H5Sink"),
    ".parquet": ("parquet", "ParquetSink"),
    "": ("parquet", "ParquetFolderSink"),
    ".md.json": ("detections", "MegaDetectorSink"),
    ".coco.json": ("detections", "CocoSink"),
    ".ls.json": ("detections", "LabelStudioSink"),
}
"""Ending of a file -> module and class of its sink, see ``FileSink``; a name without one is a folder of
Parquet parts, typed with a slash behind it (``run.progress.Paths``). But for ``FOR_OTHERS``, each module
reads its files too: ``read_table(path)`` and ``read_blocks(path, info)``."""

FOR_OTHERS = (".md.json", ".coco.json", ".ls.json")
"""Files for other programs, which say less than a row does."""

HOLDS_EXTRAS = (".h5", ".hdf5", ".parquet", "")

FLAGS: dict[Extra, tuple[str, str | None]] = {
    "attention": ("--maps", "--maps-dir"),
    "crop": ("--crops", "--crops-dir"),
    "embedding": ("--embeddings", None),
    "logits": ("--logits", None),
}
"""What can be asked for, in the order of ``RunInfo.extras`` -> option for files, option for a folder."""


class HoldsFlags(Protocol):
    """The options of a command that writes rows."""

    @property
    def maps(self) -> bool: ...
    @property
    def crops(self) -> bool: ...
    @property
    def embeddings(self) -> bool: ...
    @property
    def logits(self) -> bool: ...
    @property
    def crops_dir(self) -> Path | None: ...
    @property
    def maps_dir(self) -> Path | None: ...
    @property
    def per_file(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the rows go.

    Args:
        files: at least one; the first names OUT.partial.
        extras: what the files store beside the predictions.
        crops_dir, maps_dir: new folders for a JPEG, a 16-bit PNG, of each row.
        per_file: a CSV with one row per file where rows are frames, see ``PerFileSink``.
    """

    files: tuple[Path, ...]
    extras: frozenset[Extra] = frozenset()
    crops_dir: Path | None = None
    maps_dir: Path | None = None
    per_file: Path | None = None

    @classmethod
    def of(cls, files: Iterable[Path], asked: HoldsFlags) -> Outputs:
        """As the options of a command ask for them."""
        flags = {"attention": asked.maps, "crop": asked.crops}
        flags |= {"embedding": asked.embeddings, "logits": asked.logits}
        extras: frozenset[Extra] = frozenset(extra for extra in FLAGS if flags[extra])
        return cls(tuple(files), extras, asked.crops_dir, asked.maps_dir, asked.per_file)

    def record(self, folder: Path) -> dict[str, Any]:
        """As plain JSON values, paths relative to a folder where they lie in it, so that all may move
        together."""

        def text(path: Path | None) -> str | None:
            if path is None:
                return None
            real, base = as_path(real_path(path)), as_path(real_path(folder))
            return str(real.relative_to(base) if real.is_relative_to(base) else real)

        alone = {"crops_dir": self.crops_dir, "maps_dir": self.maps_dir, "per_file": self.per_file}
        files = [text(path) for path in self.files]
        return {
            "files": files,
            "extras": sorted(self.extras),
            **{name: text(path) for name, path in alone.items()},
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], folder: Path) -> Outputs:
        """Back from ``record``."""
        base = Path(os.path.relpath(folder)) if folder.is_relative_to(os.path.realpath(".")) else folder

        def path(text: str) -> Path:
            return as_path(text) if is_url(text) or os.path.isabs(text) else base / text

        names = ("crops_dir", "maps_dir", "per_file")
        alone = {name: path(record[name]) if record[name] else None for name in names}
        return cls(tuple(map(path, record["files"])), frozenset(record["extras"]), **alone)

    def text(self) -> str:
        """As they are typed, behind ``--out``."""
        flags = [FLAGS[extra][0] for extra in FLAGS if extra in self.extras]
        alone = [("--per-file", self.per_file)] if self.per_file else []
        named = [f"{flag} {path}" for flag, path in (*self.folders(), *alone)]
        files = [f"{path}/" if ending_of(path) == "" else str(path) for path in self.files]
        return " ".join([*files, *flags, *named])

    def needed(self) -> tuple[Extra, ...]:
        """What each row must carry, for ``Predictor(extras=...)``."""
        folders = {"crop": self.crops_dir, "attention": self.maps_dir}
        return tuple(extra for extra in FLAGS if extra in self.extras or folders.get(extra))

    def targets(self) -> list[str]:
        """The real paths of all files and folders."""
        return [real_path(path) for path in self.paths()]

    def paths(self) -> list[Path]:
        """All files and folders, as typed."""
        return [*self.tables(), *(folder for _, folder in self.folders())]

    def tables(self) -> list[Path]:
        """All files, as typed."""
        return [*self.files, *([self.per_file] if self.per_file else [])]

    def folders(self) -> list[tuple[str, Path]]:
        """All folders, as typed, each with its option."""
        flags = (("--crops-dir", self.crops_dir), ("--maps-dir", self.maps_dir))
        return [(flag, folder) for flag, folder in flags if folder]

    def check(self, *, overwrite: bool = False, allowed: Iterable[str] = ()) -> None:
        """Raise FgvcError unless all can be written; touches nothing.

        Args:
            overwrite: files that exist may be replaced; folders never are.
            allowed: real paths that may exist, put there by a merge that was cut short.

        Raises:
            FgvcError: an unknown ending, a name twice, an output that exists or whose folder does not, extras
                that no output can hold, Parquet without pyarrow.
        """
        allowed = set(allowed)
        for out in self.files:
            _check_ending(out)
        if self.per_file and self.per_file.suffix.lower() != ".csv":
            message = f"Cannot write {self.per_file.name}: --per-file expects a name ending in .csv."
            raise FgvcError(message, None, EXIT_USAGE)
        targets = self.targets()
        for target in targets:
            if targets.count(target) > 1:
                raise FgvcError(
                    f"{target} is named twice.", "Give each output a name of its own.", EXIT_USAGE
                )
        self._check_extras()
        for out in self.tables():
            check = check_parts if ending_of(out) == "" else check_writable
            check(out, overwrite=overwrite or real_path(out) in allowed)
        for _, folder in self.folders():
            check_output_folder(folder, placed=os.path.realpath(folder) in allowed)

    def _check_extras(self) -> None:
        if any(out.suffix.lower() in HOLDS_EXTRAS for out in self.files):
            return
        folders = {"crop": self.crops_dir, "attention": self.maps_dir}
        for extra, (flag, folder_flag) in FLAGS.items():
            if extra in self.extras and not folders.get(extra):
                names = ", ".join(out.name for out in self.files)
                folder_hint = f", or {folder_flag} FOLDER" if folder_flag else ""
                raise FgvcError(
                    f"{flag} needs an .h5 or .parquet output; {names} cannot hold it.",
                    f"Add --out {self.files[0].with_suffix('.h5').name}{folder_hint}.",
                    EXIT_USAGE,
                )

    def sinks(self, info: RunInfo, *, placed: Iterable[str] = (), origin: Origin | None = None) -> list[Sink]:
        """A sink for each output, which may replace what is there: ``check`` has been asked before.

        Args:
            placed: real paths of an earlier merge; folders among them that exist are complete.
            origin: where the images were, if that is known.
        """
        sinks: list[Sink] = []
        for out in self.files:
            cls = getattr(format_of(out), SINKS[ending_of(out)][1])
            sinks.append(cls(out, overwrite=True, extras=self.extras, origin=origin))
        if self.per_file:
            from fgvc_cli.formats.csv_rows import PerFileSink

            sinks.append(PerFileSink(self.per_file, overwrite=True))
        for folder, cls in ((self.crops_dir, CropsFolder), (self.maps_dir, MapsFolder)):
            if folder and not (os.path.realpath(folder) in set(placed) and holds_anything(folder)):
                sinks.append(cls(folder))
        return sinks


def read_table(path: Path) -> Table:
    """Read what ``fgvc predict`` wrote.

    Raises:
        FgvcError: no such file, another kind of file, damaged, without a row, or of more than ``MAX_ROWS``.
    """
    if ending_of(path) not in SINKS or ending_of(path) in FOR_OTHERS:
        readable = ", ".join(ending for ending in SINKS if ending and ending not in FOR_OTHERS)
        hint = f"Give one of {readable}; of an .h5 the attention maps and crops are shown too."
        raise FgvcError(f"fgvc report does not read {path.name}.", hint, EXIT_USAGE)
    if not (path.is_dir() if ending_of(path) == "" else path.is_file()):
        what = "is not a file" if path.exists() else "does not exist"
        raise FgvcError(f"{path} {what}.", HOW_TO)
    return format_of(path).read_table(path)


def read_embeddings(path: Path, rows: np.ndarray) -> np.ndarray | None:
    """Embeddings (n, D) float32 of rows (n,) of a file by their numbers, NaN where a row has none; None where
    the file, or its format, holds none.

    Raises:
        FgvcError: it cannot be read.
    """
    read = getattr(format_of(path), "read_embeddings", None)
    return read(path, rows) if read else None


def format_of(path: Path) -> Any:
    """The module that writes and reads files of this ending, one of ``SINKS``.

    Raises:
        FgvcError: Parquet without pyarrow.
    """
    _check_ending(path)
    return importlib.import_module(f"fgvc_cli.formats.{SINKS[ending_of(path)][0]}")


def ending_of(path: Path) -> str:
    """What of a name says its format, in lower case; of ``all.md.json`` it is ``.md.json``."""
    name = path.name.lower()
    return next((ending for ending in FOR_OTHERS if name.endswith(ending)), path.suffix.lower())


def _check_ending(out: Path) -> None:
    ending = ending_of(out)
    if ending not in SINKS:
        known = ", ".join(filter(None, SINKS))
        message = f"Cannot write {out.name}: expected a name ending in {known}, or FOLDER/ for Parquet parts."
        raise FgvcError(message, None, EXIT_USAGE)
    if ending in (".parquet", "") and importlib.util.find_spec("pyarrow") is None:
        raise FgvcError(f"{out.name} needs pyarrow, which is not installed.", "pip install 'fgvc[parquet]'")


PART = re.compile(r"part-\d{5,}\.parquet")
SUCCESS = "_SUCCESS"
"""Of a folder of Parquet parts, as Spark writes it: there once all parts are."""


def part_files(folder: Path) -> list[Path]:
    """The Parquet parts of a folder, in the order of the rows."""
    return sorted((path for path in folder.glob("part-*.parquet") if PART.fullmatch(path.name)), key=str)


def check_parts(folder: Path, *, overwrite: bool) -> None:
    """Raise FgvcError unless a folder of Parquet parts can be made there, without touching anything.

    Args:
        overwrite: replace one that is there, if nothing else than parts lies in it.
    """
    replaceable = (SUCCESS, *(path.name for path in part_files(folder)))
    if not isinstance(folder, StorePath):
        return check_folder(folder, overwrite=overwrite, replaceable=replaceable)
    check_store(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if names and not overwrite:
        raise FgvcError(f"{folder}/ exists.", "Add --overwrite to replace it, or name another folder.")
    if strange := [name for name in names if name not in replaceable]:
        raise FgvcError(f"{folder}/ holds other files too, such as {strange[0]}.", "Name another folder.")


def check_output_folder(folder: Path, *, placed: bool = False) -> None:
    """Raise FgvcError unless a folder of outputs can be made: absent or empty, its own folder there.

    Args:
        placed: an earlier merge of the same run has put it there, whatever it holds.

    Raises:
        FgvcError: it cannot.
    """
    if is_url(str(folder).replace(":/", "://", 1)):  # a Path has made one slash of two
        message = f"A folder of pictures is written to a disk, not to {folder}."
        raise FgvcError(message, "Name a folder here; an .h5 or .parquet takes crops and maps to a store.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise FgvcError(f"{folder} exists and is not a folder.", "Name a new folder.")
    if folder.is_dir() and holds_anything(folder) and not placed:
        # Even with --overwrite: a folder of images may have been named by mistake.
        message = f"{folder} exists and is not empty; fgvc replaces no folder."
        raise FgvcError(message, "Name a new folder, or remove it.")
    parent = Path(os.path.realpath(folder)).parent
    if not parent.is_dir():
        raise FgvcError(f"There is no folder {folder.parent}.", f"mkdir -p {folder.parent}")


def holds_anything(folder: Path) -> bool:
    """Whether a folder is there and not empty."""
    return folder.is_dir() and any(folder.iterdir())


def safe_name(path: str) -> str:
    """A row's path as a relative one that stays inside a folder, with forward slashes."""
    steps = [step for step in as_text(path).replace("\\", "/").split("/") if step not in ("", ".")]
    return "/".join("__" if step == ".." else step for step in steps).replace("\0", "_") or "_"


class FolderSink(ABC):
    """A folder that appears complete or not at all: it is filled as ``.NAME.tmp`` beside it, then renamed.

    Args:
        out: the folder; absent or empty.

    Raises:
        FgvcError: it cannot be written: a full disk, a lost folder.
    """

    ending: str

    def __init__(self, out: Path):
        self.out = out
        self._target = Path(os.path.realpath(out))
        self._filling = self._target.with_name(f".{self._target.name}.tmp")
        self._rows = 0
        self._made: set[Path] = set()

    def __enter__(self) -> Self:
        try:
            # A killed process may have left one, of another run perhaps.
            shutil.rmtree(self._filling, ignore_errors=True)
            self._filling.mkdir()
        except OSError as error:
            raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # Once for all files; a sync of each would take longer than the predictions.
                if hasattr(os, "sync"):
                    os.sync()
                self._filling.replace(self._target)
                sync_folder(self._target.parent)
        except OSError as failure:
            raise self._explain(failure) from failure
        finally:
            shutil.rmtree(self._filling, ignore_errors=True)

    def begin(self, info: RunInfo) -> None:  # noqa: B027 - the sinks of files need it
        """Nothing is shared."""

    def write(self, block: Block) -> None:
        """The files of the next rows."""
        for i, path in enumerate(block.path):
            data = self._encode(block, i) if has_prediction(block.status[i]) else b""
            # Of an image with several boxes each has a file.
            box = f"-{safe_name(block.more['box_id'][i])}" if "box_id" in block.more else ""
            if data:
                self._put(f"{safe_name(path)}{box}{self.ending}", self._rows + i, data)
        self._rows += len(block)

    def _put(self, name: str, row: int, data: bytes) -> str:
        """Write a file; the name it has got."""
        try:
            path = self._filling / name
            folder = path.parent
            if folder not in self._made:
                folder.mkdir(parents=True, exist_ok=True)
                if len(self._made) > 1000:
                    self._made.clear()
                self._made.add(folder)
            with path.open("xb") as stream:
                stream.write(data)
        except OSError as error:
            flat = f"row-{row}{self.ending}"
            if _is_about_space(error) or name == flat:
                raise self._explain(error) from error
            return self._put(flat, row, data)
        return name

    @abstractmethod
    def _encode(self, block: Block, row: int) -> bytes:
        """The file of a row, empty for none."""

    def _explain(self, error: OSError) -> FgvcError:
        return FgvcError(f"Could not write {self.out}: {reason(error)}; it is left as it was.", TRY_AGAIN)


def _is_about_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE)


class CropsFolder(FolderSink):
    """The object of each row, as the JPEG that the row carries."""

    ending = ".jpg"

    def _encode(self, block: Block, row: int) -> bytes:
        return block.crop[row] if block.crop else b""


class MapsFolder(FolderSink):
    """The attention map of each row over the model's input, 16-bit grey PNG: 65535 is 1."""

    ending = ".png"

    def _encode(self, block: Block, row: int) -> bytes:
        if block.attention is None or np.isnan(block.attention[row]).any():
            return b""
        grey = np.round(block.attention[row].astype(np.float32).clip(0, 1) * 65535).astype(np.uint16)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()
