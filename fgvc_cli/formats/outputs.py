"""What a run writes at its end, checked before it begins: files by their endings, folders of crops, maps."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import check_writable

if TYPE_CHECKING:
    from fgvc_cli.formats.provenance import Origin
    from fgvc_cli.formats.rows import Extra, RunInfo
    from fgvc_cli.formats.sinks import Sink

SINKS = {
    ".csv": ("csv_rows", "CsvSink"),
    ".jsonl": ("jsonl", "JsonlSink"),
    ".h5": ("h5", "H5Sink"),
    ".hdf5": ("h5", "H5Sink"),
    ".parquet": ("parquet", "ParquetSink"),
}
"""Ending of a file -> module and class of its sink, see ``FileSink``."""

HOLDS_EXTRAS = (".h5", ".hdf5", ".parquet")

FLAGS: dict[Extra, tuple[str, str | None]] = {
    "attention": ("--maps", "--maps-dir"),
    "crop": ("--crops", "--crops-dir"),
    "embedding": ("--embeddings", None),
    "logits": ("--logits", None),
}
"""What can be asked for, in the order of ``RunInfo.extras`` -> option for files, option for a folder."""


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

    def needed(self) -> tuple[Extra, ...]:
        """What each row must carry, for ``Predictor(extras=...)``."""
        folders = {"crop": self.crops_dir, "attention": self.maps_dir}
        return tuple(extra for extra in FLAGS if extra in self.extras or folders.get(extra))

    def targets(self) -> list[str]:
        """The real paths of all files and folders."""
        return [os.path.realpath(path) for path in self.paths()]

    def paths(self) -> list[Path]:
        """All files and folders, as typed."""
        return [*self.files, *([self.per_file] if self.per_file else []), *self._folders()]

    def _folders(self) -> list[Path]:
        return [folder for folder in (self.crops_dir, self.maps_dir) if folder]

    def check(self, *, overwrite: bool = False, allowed: Iterable[str] = ()) -> None:
        """Whether all can be written; touches nothing.

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
        for out in [*self.files, *([self.per_file] if self.per_file else [])]:
            check_writable(out, overwrite=overwrite or os.path.realpath(out) in allowed)
        for folder in self._folders():
            check_folder(folder, placed=os.path.realpath(folder) in allowed)

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
            origin: where the photographs were, if that is known.
        """
        sinks: list[Sink] = []
        for out in self.files:
            module, name = SINKS[out.suffix.lower()]
            cls = getattr(importlib.import_module(f"fgvc_cli.formats.{module}"), name)
            sinks.append(cls(out, overwrite=True, extras=self.extras, origin=origin))
        if self.per_file:
            from fgvc_cli.formats.per_file import PerFileSink

            sinks.append(PerFileSink(self.per_file, overwrite=True))
        from fgvc_cli.formats.folders import CropsFolder, MapsFolder

        for folder, cls in ((self.crops_dir, CropsFolder), (self.maps_dir, MapsFolder)):
            if folder and not (os.path.realpath(folder) in set(placed) and _holds_anything(folder)):
                sinks.append(cls(folder))
        return sinks


def _check_ending(out: Path) -> None:
    ending = out.suffix.lower()
    if ending not in SINKS:
        known = ", ".join(SINKS)
        raise FgvcError(f"Cannot write {out.name}: expected a name ending in {known}.", None, EXIT_USAGE)
    if ending == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise FgvcError(f"{out.name} needs pyarrow, which is not installed.", "pip install 'fgvc[parquet]'")


def check_folder(folder: Path, *, placed: bool = False) -> None:
    """Whether a folder of outputs can be made: absent or empty, its own folder there and writable.

    Args:
        placed: an earlier merge of the same run has put it there, whatever it holds.

    Raises:
        FgvcError: it cannot.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise FgvcError(f"{folder} exists and is not a folder.", "Name a new folder.")
    if folder.is_dir() and _holds_anything(folder) and not placed:
        # Even with --overwrite: a folder of photographs may have been named by mistake.
        message = f"{folder} exists and is not empty; fgvc replaces no folder."
        raise FgvcError(message, "Name a new folder, or remove it.")
    parent = Path(os.path.realpath(folder)).parent
    if not parent.is_dir():
        raise FgvcError(f"There is no folder {folder.parent}.", f"mkdir -p {folder.parent}")


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
