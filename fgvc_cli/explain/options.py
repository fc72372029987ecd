"""What ``fgvc explain`` is asked for, checked before anything is loaded, and the models that it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fgvc_cli.command import BoxOptions, MessageOptions, Several, options
from fgvc_cli.engine.weights import MODEL_FILE
from fgvc_cli.errors import EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.explain.explainer import Explainer
    from fgvc_cli.explain.outputs import MapsFile, PartsFolder
    from fgvc_cli.retrieval.index_file import NearestIndex

NEIGHBOURS = 6
"""With ``--index`` alone; as many as a page shows in a row."""


@options
class ExplainOptions(MessageOptions, BoxOptions):
    """What ``fgvc explain`` is asked for."""

    image: Path
    """An image; a folder or an archive of them."""
    weights: Several = ()
    """Embedded model, file or folder, see ``expand_weights``; several make a figure, a row for each; none:
    the default."""
    out: Path | None = None
    """The picture to appear, ending in .png, or a new folder for many. None is ``<stem>.explain.png``, or
    ``<name>.explain``, in the current folder, never beside the images, where it would join the data."""
    method: Several = ()
    """Whose maps to draw; none: what the model itself shows."""
    target: str | None = None
    """Class to explain; None: the most probable one."""
    against: str | None = None
    """Class to hold it against; None: all others together."""
    page: Literal["full", "strip"] | None = None
    """How much of a page each picture is; None: a full one for one image, strips for many."""
    parts_dir: Path | None = None
    """New folder for the maps as numbers, or a file ending in .h5."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Classes to name; a picture shows the first of them."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    stages: Literal["main", "main+object", "all"] | None = None
    """Of a multi-stage ViT; None: as trained."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a multi-stage ViT: images this sure after a stage take no further one; None: as trained."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Threads that read, and as many that draw."""
    nearest: Annotated[int, Field(ge=1)] | None = None
    """Known images to compare with, of each likely class and overall; None: as many as a page shows where
    ``index`` is given, else none. For one model."""
    index: Path | None = None
    """Their index; None: that of the weights, see ``default_index``."""
    overwrite: bool = False
    """Replace the picture, or the .h5, if it is there; a folder never is."""

    @property
    def many(self) -> bool:
        """Whether the source holds any number of images, or of boxes."""
        from fgvc_cli.sources.stored import is_archive

        return (
            self.boxes is not None
            or self.image.is_dir()
            or (is_archive(str(self.image)) and self.image.is_file())
        )

    @property
    def target_path(self) -> Path:
        """What is written."""
        if self.out:
            return self.out
        if self.many:
            return Path(f"{self.image.resolve().name}.explain")
        return Path(f"{self.image.stem}.explain.png")

    @property
    def parts_in_file(self) -> bool:
        """Whether the maps go into one HDF5 file."""
        return self.parts_dir is not None and self.parts_dir.suffix.lower() in (".h5", ".hdf5")

    @cached_property
    def models(self) -> list[ModelRow]:
        """What to explain.

        Raises:
            FgvcError: see ``expand_weights``.
        """
        return expand_weights(self.weights)

    @property
    def index_path(self) -> Path | None:
        """The index to search, whether it is there or not; None where nothing is to be compared."""
        if self.index is not None or self.nearest is None:
            return self.index
        from fgvc_cli.retrieval.index_file import default_index

        return default_index(self.models[0].weights)

    def open_parts(self) -> PartsFolder | MapsFile:
        """Where the maps go as numbers: a context manager."""
        assert self.parts_dir is not None
        if self.parts_in_file:
            from fgvc_cli.explain.outputs import MapsFile

            return MapsFile(self.parts_dir, overwrite=self.overwrite)
        from fgvc_cli.explain.outputs import PartsFolder

        return PartsFolder(self.parts_dir)

    def check(self) -> None:
        """Raise FgvcError for what can be known to fail.

        Raises:
            FgvcError: an unknown method, outputs that cannot be written or that do
                not fit the source.
        """
        from fgvc_cli.explain.methods import pick_methods
        from fgvc_cli.files import check_writable
        from fgvc_cli.formats.outputs import check_output_folder

        pick_methods(self.method, asked=self.target is not None or self.against is not None)
        self._check_comparison()
        if self.parts_dir and self.parts_in_file:
            check_writable(self.parts_dir, overwrite=self.overwrite)
        elif self.parts_dir:
            check_output_folder(self.parts_dir)
        if self.many:
            if self.target_path.suffix.lower() == ".png":
                kind = "a folder" if self.image.is_dir() else "an archive"
                raise FgvcError(
                    f"--out {self.target_path} names a picture, but {self.image} is {kind} of images.",
                    f"Name a folder: --out {self.target_path.with_suffix('')}",
                    EXIT_USAGE,
                )
            check_output_folder(self.target_path)
            if self.parts_dir and self.parts_dir.resolve() == self.target_path.resolve():
                raise FgvcError("--parts-dir and --out are the same folder.", "Name two.", EXIT_USAGE)
            return
        picture = self.target_path
        if picture.suffix.lower() != ".png":
            raise FgvcError(f"--out got {str(picture)!r}, expected a name ending in .png.", None, EXIT_USAGE)
        if picture.exists() and self.image.exists() and picture.samefile(self.image):
            raise FgvcError(f"--out {picture} is the image itself.", "Name another file.", EXIT_USAGE)

    def _check_comparison(self) -> None:
        several = [
            name for name in ("page", "nearest", "index") if getattr(self, name) and len(self.models) > 1
        ]
        if several:
            raise FgvcError(
                f"--{several[0]} is for one model.", "Several --weights make a figure.", EXIT_USAGE
            )
        if self.index_path is not None:
            from fgvc_cli.engine.index_classes import require_index

            require_index(self.index_path, self.models[0].weights)

    @contextmanager
    def open_explainers(self) -> Iterator[dict[str, Explainer]]:
        """The models on their device, ready to explain, by label; of one model alone the label is empty.

        Raises:
            FgvcError: weights or a device that are not there, a class that a model does not know, an index of
                other weights.
        """
        from fgvc_cli.engine.device import pick_device
        from fgvc_cli.engine.weights import open_weights
        from fgvc_cli.explain.explainer import Explainer
        from fgvc_cli.explain.methods import pick_methods

        device = pick_device(self.device)
        looks = {"stages": self.stages, "cascade": self.cascade}
        asked = self.target is not None or self.against is not None
        with ExitStack() as stack:
            explainers = {}
            for row in self.models:
                checkpoint = open_weights(row.weights, options=looks)
                checkpoint.model.to(device)
                explainers[row.label if len(self.models) > 1 else ""] = Explainer(
                    checkpoint,
                    methods=pick_methods(self.method, asked=asked),
                    target=self.target,
                    against=self.against,
                    top_k=self.top_k,
                    index=stack.enter_context(self._open_index(checkpoint.sha256)),
                    neighbours=self.nearest or NEIGHBOURS,
                )
            yield explainers

    def _open_index(self, sha256: str) -> AbstractContextManager[NearestIndex | None]:
        path = self.index_path
        if path is None:
            return nullcontext()
        from fgvc_cli.retrieval.index_file import NearestIndex

        return NearestIndex(path, weights_sha256=sha256)


@dataclass(frozen=True)
class ModelRow:
    """One model to explain."""

    label: str
    """In pictures, tables and file names."""
    weights: str | None
    """For ``open_weights``."""


def expand_weights(given: Sequence[str]) -> list[ModelRow]:
    """One row per model; none given is the default model.

    A text is an embedded model, a checkpoint, the folder of a training, or the folder of a table
    (``fgvc train --ablate``), which stands for all its rows with the first seed. ``LABEL=`` in front names
    a row.

    Raises:
        FgvcError: a folder without a training, two rows of one label.
    """
    if not given:
        return [ModelRow("", None)]
    rows = [row for text in given for row in _expand(text)]
    labels = [row.label for row in rows]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise FgvcError(
            f"Two --weights are called {twice!r}.", f"Name them: --weights 'A={rows[0].weights}'", EXIT_USAGE
        )
    return rows


def _expand(text: str) -> list[ModelRow]:
    label, equals, rest = text.partition("=")
    if equals and label and rest and not Path(text).exists() and "/" not in label:
        rows = _expand(rest)
        if len(rows) > 1:
            raise FgvcError(
                f"--weights {text!r} names {len(rows)} models.", "Leave the name out.", EXIT_USAGE
            )
        return [ModelRow(label, rows[0].weights)]
    path = Path(text)
    if not path.is_dir():
        # Trainings call their file all the same; the folder says which one it is.
        named = path.resolve().parent.name if path.name == MODEL_FILE else path.stem
        return [ModelRow(named if path.suffix else text, text)]
    if (path / MODEL_FILE).is_file():
        return [ModelRow(path.resolve().name, str(path / MODEL_FILE))]
    return _table_rows(path)


def _table_rows(folder: Path) -> list[ModelRow]:
    """The ended trainings of a table with its first seed, in the table's order."""
    from fgvc_cli.engine.ablate import order_variants
    from fgvc_cli.engine.run_state import finished_run

    seeds: dict[int, list[str]] = {}
    for run in sorted(folder.glob("*-s*")):
        variant, _, seed = run.name.rpartition("-s")
        if seed.isdecimal() and finished_run(run) is not None:
            seeds.setdefault(int(seed), []).append(variant)
    if not seeds:
        raise FgvcError(
            f"--weights {folder}: a folder without a finished training.",
            "Expected a model.safetensors, the folder of a training, or that of fgvc train --ablate.",
        )
    first = min(seeds)
    names = order_variants(seeds[first])
    return [ModelRow(name, str(folder / f"{name}-s{first}" / MODEL_FILE)) for name in names]
