"""What ``fgvc explain`` was asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fgvc_cli.commands.explain_rows import ModelRow, expand_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain import Page

if TYPE_CHECKING:
    from fgvc_cli.explain.explainer import Explainer
    from fgvc_cli.explain.folders import PartsFolder
    from fgvc_cli.explain.maps_file import MapsFile
    from fgvc_cli.retrieval.search import NearestIndex

NEIGHBOURS = 6
"""With ``--index`` alone; as many as a page shows in a row."""


@dataclass(frozen=True)
class ExplainOptions:
    """One call of the command.

    Attributes:
        image: a photograph; a folder or an archive of them.
        weights: manifest name, file or folder, see ``expand_weights``; several make a figure, a row for each.
            None is the default.
        out: the picture to appear, ending in .png, or a new folder for many. None is ``<stem>.explain.png``,
            or ``<name>.explain``, in the current folder, never beside the photographs, where it would join
            the data.
        methods: whose maps to draw; none: what the model itself shows.
        target, against: class names, see ``Question``.
        page: how much of a page each picture is; None: a full one for one photograph, strips for many.
        parts_dir: new folder for the maps as numbers, or a file ending in .h5.
        top_k: classes to name; a picture shows the first of them.
        stages, cascade: settings of a multi-stage model to answer with; None: as trained.
        nearest: known photographs to compare with, of each likely class and overall; None: as many as a page
            shows where ``index`` is given, else none. For one model.
        index: their index; None: that of the weights, see ``index.default_index``.
        overwrite: replace the picture, or the .h5, if it is there; a folder never is.
        quiet: nothing on stderr but errors.
    """

    image: Path
    weights: str | tuple[str, ...] | None = None
    out: Path | None = None
    methods: tuple[str, ...] = ()
    target: str | None = None
    against: str | None = None
    page: Page | None = None
    parts_dir: Path | None = None
    top_k: int = 5
    device: str = "auto"
    stages: str | None = None
    cascade: float | None = None
    batch_size: int = 16
    workers: int = 2
    nearest: int | None = None
    index: Path | None = None
    overwrite: bool = False
    quiet: bool = False

    @property
    def many(self) -> bool:
        """Whether the source holds any number of photographs."""
        from fgvc_cli.sources.stored import is_archive

        return self.image.is_dir() or (is_archive(str(self.image)) and self.image.is_file())

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
        if self.weights is None:
            return expand_weights(())
        return expand_weights([self.weights] if isinstance(self.weights, str) else self.weights)

    @property
    def index_path(self) -> Path | None:
        """The index to search, whether it is there or not; None where nothing is to be compared."""
        if self.index is not None or self.nearest is None:
            return self.index
        from fgvc_cli.commands.index import default_index

        return default_index(self.models[0].weights)

    def open_parts(self) -> PartsFolder | MapsFile:
        """Where the maps go as numbers: a context manager."""
        assert self.parts_dir is not None
        if self.parts_in_file:
            from fgvc_cli.explain.maps_file import MapsFile

            return MapsFile(self.parts_dir, overwrite=self.overwrite)
        from fgvc_cli.explain.folders import PartsFolder

        return PartsFolder(self.parts_dir)

    def check(self) -> None:
        """Refuse what can be known to fail.

        Raises:
            FgvcError: a setting out of range, an unknown method, outputs that cannot be written or that do
                not fit the source.
        """
        from fgvc_cli.explain.methods import pick_methods
        from fgvc_cli.files import check_writable
        from fgvc_cli.formats.outputs import check_folder

        if self.top_k < 1:
            raise FgvcError(f"--top-k got {self.top_k}, expected 1 or more.", None, EXIT_USAGE)
        if self.page not in (None, *get_args(Page)):
            known = " or ".join(get_args(Page))
            raise FgvcError(f"--page got {self.page!r}, expected {known}.", None, EXIT_USAGE)
        pick_methods(self.methods, asked=self.target is not None or self.against is not None)
        self._check_comparison()
        if self.parts_dir and self.parts_in_file:
            check_writable(self.parts_dir, overwrite=self.overwrite)
        elif self.parts_dir:
            check_folder(self.parts_dir)
        if self.many:
            if self.target_path.suffix.lower() == ".png":
                kind = "a folder" if self.image.is_dir() else "an archive"
                raise FgvcError(
                    f"--out {self.target_path} names a picture, but {self.image} is {kind} of photographs.",
                    f"Name a folder: --out {self.target_path.with_suffix('')}",
                    EXIT_USAGE,
                )
            check_folder(self.target_path)
            if self.parts_dir and self.parts_dir.resolve() == self.target_path.resolve():
                raise FgvcError("--parts-dir and --out are the same folder.", "Name two.", EXIT_USAGE)
            return
        picture = self.target_path
        if picture.suffix.lower() != ".png":
            raise FgvcError(f"--out got {str(picture)!r}, expected a name ending in .png.", None, EXIT_USAGE)
        if picture.exists() and self.image.exists() and picture.samefile(self.image):
            raise FgvcError(f"--out {picture} is the photograph itself.", "Name another file.", EXIT_USAGE)

    def _check_comparison(self) -> None:
        if self.nearest is not None and self.nearest < 1:
            raise FgvcError(f"--nearest got {self.nearest}, expected 1 or more.", None, EXIT_USAGE)
        several = [
            name for name in ("page", "nearest", "index") if getattr(self, name) and len(self.models) > 1
        ]
        if several:
            raise FgvcError(
                f"--{several[0]} is for one model.", "Several --weights make a figure.", EXIT_USAGE
            )
        if self.index_path is not None:
            from fgvc_cli.retrieval.search import require_index

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
                    methods=pick_methods(self.methods, asked=asked),
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
        from fgvc_cli.retrieval.search import NearestIndex

        return NearestIndex(path, weights_sha256=sha256)
