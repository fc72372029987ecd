"""The folder of a training: which one, made empty, finished or not, what ``--resume`` starts from; and what
is written and said while it runs: metrics.csv, its curves, TensorBoard.

``last/state.safetensors`` holds the tensors, and in its header as JSON everything else, never a pickle. One
file is written whole or not at all, so its parts are always of the same moment. Ctrl-C and SIGTERM come
between two updates, not within one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from safetensors.torch import save
from torch import Tensor

from fgvc_cli import __version__
from fgvc_cli.command import Messages
from fgvc_cli.config import TrainConfig, stored_config
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.weights import MODEL_FILE
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.evaluate.metrics import headline
from fgvc_cli.files import AtomicFile
from fgvc_cli.models.weights import read_tensors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


CHECKPOINT, METRICS, CONFIG = MODEL_FILE, "metrics.csv", "config.json"
RUN_FILES = (CHECKPOINT, METRICS, CONFIG)
"""What a run folder holds, beside ``last/`` while the run is not finished."""

FOLDER, FILE = "last", "state.safetensors"
STATE_KEY = "fgvc_state"
FORMAT = 1


@dataclass
class Progress:
    """Where a run stands between two updates."""

    epoch: int = 1
    """The one in progress; one more than there are when all are done."""
    batches: int = 0
    """Of this epoch, done."""
    seconds: float = 0.0
    """Of training in this epoch so far."""
    meter: dict[str, Any] | None = None
    """See ``Meter.state``; None where the epoch has not begun."""
    best_epoch: int = 0
    """Whose model lies in the run folder; 0: none."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """Lines of metrics.csv, of the epochs before this one."""


@dataclass
class RunState:
    """A saved state, read back."""

    config: TrainConfig
    data_sha256: str
    classes: tuple[str, ...]
    progress: Progress
    learner: dict[str, Any]
    """See ``Learner.state``."""


def save_state(
    run_dir: Path,
    *,
    config: TrainConfig,
    data_sha256: str,
    classes: tuple[str, ...],
    progress: Progress,
    learner: dict[str, Any],
) -> None:
    """Replace the state in ``run_dir``, whole or not at all.

    Raises:
        FgvcError: it cannot be written; the one before is left as it was.
    """
    tensors: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "fgvc_version": __version__,
        "config": config.model_dump(),
        "data_sha256": data_sha256,
        "classes": list(classes),
        "progress": asdict(progress),
        "learner": pack(learner, tensors),
    }
    path = state_path(run_dir)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise AtomicFile(path).explain(error) from error
    with AtomicFile(path, overwrite=True) as stream:
        stream.write(save(tensors, metadata={STATE_KEY: json.dumps(document)}))


def load_state(run_dir: Path) -> RunState:
    """The last state that was saved in ``run_dir``.

    Raises:
        FgvcError: no such folder, a file, a folder without one; a state that is damaged, foreign or newer.
    """
    path = state_path(run_dir)
    if not path.is_file():
        raise _nothing_there(run_dir)
    tensors, header = read_tensors(path)
    if STATE_KEY not in header:
        raise FgvcError(f"{path} was not written by fgvc train.", "Train again, with another --out.")
    document = json.loads(header[STATE_KEY])
    if document["format"] > FORMAT:
        raise FgvcError(
            f"{path} was written by fgvc {document['fgvc_version']}, this is {__version__}.",
            "pip install --upgrade fgvc",
        )
    return RunState(
        config=stored_config(document["config"]),
        data_sha256=document["data_sha256"],
        classes=tuple(document["classes"]),
        progress=Progress(**document["progress"]),
        learner=unpack(document["learner"], tensors),
    )


def _nothing_there(run_dir: Path) -> FgvcError:
    start = "or start one: fgvc train --model ... --data ..."
    if run_dir.is_dir():
        return FgvcError(
            f"--resume {run_dir} holds nothing to go on from: there is no {FOLDER}/{FILE} in it.",
            f"Give the run folder of an interrupted training, {start}",
            EXIT_USAGE,
        )
    if run_dir.exists():
        return FgvcError(
            f"--resume {run_dir} is a file, expected a run folder.",
            f"Give the folder of an interrupted training, which holds {FOLDER}/{FILE}.",
            EXIT_USAGE,
        )
    beside = run_dir.parent.iterdir() if run_dir.parent.is_dir() else ()
    close = nearest(run_dir.name, [folder.name for folder in beside if folder.is_dir()])
    meant = f"Did you mean {' or '.join(str(run_dir.with_name(name)) for name in close)}?" if close else None
    return FgvcError(
        f"--resume {run_dir}: there is no such folder.",
        meant or f"Give the run folder of an interrupted training, {start}",
        EXIT_USAGE,
    )


def state_path(run_dir: Path) -> Path:
    """Where the state of a run lies."""
    return run_dir / FOLDER / FILE


def remove_state(run_dir: Path) -> None:
    """Take the state away: of a run that is finished, or replaced."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested dicts, lists and tuples as JSON takes them; tensors go into ``tensors`` and leave their name.

    Raises:
        TypeError: a leaf that is neither a tensor nor a plain value.
    """
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        spread = tree.ndim == 4 and not tree.is_contiguous()
        # A copy: two names may share memory, which safetensors refuses.
        tensors[name] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "channels_last": spread}
    if isinstance(tree, dict):
        return {"dict": [[key, pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise TypeError(f"a state holds a {type(tree).__name__}")


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``pack`` was given, tensors on the CPU in their memory format: sums over another one round
    differently."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        tensor = tensors[tree["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if tree["channels_last"] else tensor
    if "dict" in tree:
        return {key: unpack(value, tensors) for key, value in tree["dict"]}
    kind, values = next(iter(tree.items()))
    return (tuple if kind == "tuple" else list)(unpack(value, tensors) for value in values)


def choose_run_dir(out: Path | None, config: TrainConfig, data_name: str, overwrite: bool) -> Path:
    """Where a run is to lie: ``out``, or ``runs/<model>-<data>``; nothing is made yet.

    Raises:
        FgvcError: it is a file, or a folder that is in use.
    """
    run_dir = out or Path("runs") / f"{config.model}-{data_name}".replace("/", "_").replace(":", "_")
    if run_dir.exists() and not run_dir.is_dir():
        raise FgvcError(f"--out {run_dir} is a file, expected a folder.", "Choose another --out.")
    if run_dir.is_dir() and not overwrite and any(run_dir.iterdir()):
        raise FgvcError(
            f"The run folder {run_dir} is not empty.",
            f"Go on with it: fgvc train --resume {shlex.quote(str(run_dir))}; or choose another --out, or "
            "replace it with --overwrite.",
        )
    return run_dir


def make_run_dir(run_dir: Path) -> None:
    """Made only once everything else is known to work, so that a mistake leaves no empty folder.

    Raises:
        FgvcError: it cannot be written into.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # What an earlier run left must not be taken for this one's.
        remove_state(run_dir)
        for path in [*(run_dir / name for name in RUN_FILES), *run_dir.glob(EVENT_FILES)]:
            path.unlink(missing_ok=True)
        probe = run_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FgvcError(f"Cannot write to {run_dir}: {error.strerror}.", "Choose another --out.") from error


def finished_run(run_dir: Path) -> dict[str, Any] | None:
    """The metadata of the checkpoint in a run folder whose training came to its end; else None.

    Raises:
        FgvcError: a checkpoint that cannot be read.
    """
    checkpoint = run_dir / CHECKPOINT
    if not checkpoint.is_file():
        return None
    metadata = read_metadata(checkpoint)
    if "finished" in metadata:
        return metadata if metadata["finished"] else None
    # Before fgvc wrote that down: figures beside val came at the end; several labels without a test split had
    # none, but the state goes away at the end only.
    ended = metadata["metrics"].keys() > {"val"}
    several = metadata["options"].get("multi_label") and metadata["metrics"]
    return metadata if ended or (several and not state_path(run_dir).exists()) else None


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM, with which schedulers end a job, is a ``KeyboardInterrupt`` too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM,), interrupt):
        yield


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM become a ``KeyboardInterrupt`` when the block is done; a second one does at once."""
    came: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    with _handling(_SIGNALS, wait):
        try:
            yield
        except (RuntimeError, FgvcError) as error:
            if came:  # the same signal ended a process that this one needs
                raise KeyboardInterrupt from error
            raise
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(signals: tuple[int, ...], handler: Any) -> Iterator[None]:
    """Only the main thread may set handlers; what is ignored (``nohup``), or not Python's, stays so."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signals}
        before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Observer(Protocol):
    """The command line shows what it is told. A context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each update; ``epoch`` and ``step``, in batches, count from 1."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """After each validation; ``row`` is the line written to metrics.csv."""

    def on_warning(self, message: str) -> None:
        """Something the user should know, once."""


class MetricsFile:
    """One line per epoch, on disk as soon as it is written; the file is whole at any moment.

    Args:
        rows: lines of the epochs before, of a run that is gone on with.
    """

    def __init__(self, path: Path, rows: list[dict[str, float]] | None = None):
        self.path = path
        self.rows = list(rows or [])

    def write(self, row: dict[str, float]) -> None:
        """Append a row; what it lacks stays empty, a new column goes to the right end.

        Raises:
            FgvcError: the file cannot be written; the row is kept and comes with the next one.
        """
        self.rows.append(row)
        # A column may come late: the accuracy of a branch that no image reached before.
        columns = list(dict.fromkeys(name for line in self.rows for name in line))
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        for line in self.rows:
            table.writerow([format(line[name], ".6g") if name in line else "" for name in columns])
        with AtomicFile(self.path, overwrite=True) as stream:
            stream.write(text.getvalue().encode())


EVENT_FILES = "events.out.tfevents.*"
"""Pattern of their names."""


class TensorBoard:
    """Writes ``events.out.tfevents...`` files into a run folder, one scalar per column and epoch.

    Args:
        first_epoch: epochs from this one on that an interrupted run left are not shown any more.

    Raises:
        FgvcError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, first_epoch: int = 1):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FgvcError(
                "tensorboard=yes needs TensorBoard, which is not installed.",
                "pip install 'fgvc[tensorboard]'",
                EXIT_USAGE,
            ) from error
        # Opened with the first row: opening makes the folder.
        self._open = partial(SummaryWriter, str(run_dir), purge_step=first_epoch)
        self._writer: SummaryWriter | None = None

    def write(self, row: dict[str, float]) -> None:
        """A row of metrics.csv; ``val_top1`` is shown as ``val/top1``, ``loss`` as ``train/loss``.

        Raises:
            OSError: the event file cannot be written.
        """
        self._writer = self._writer or self._open()
        for name, value in row.items():
            if name != "epoch":
                is_val = name.startswith("val_")
                tag = f"val/{name.removeprefix('val_')}" if is_val else f"train/{name}"
                self._writer.add_scalar(tag, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer:
            self._writer.close()


CURVES = "curves.png"
"""In the run folder: what metrics.csv holds, drawn."""
CURVES_SHARE = 0.05
"""Most of the time that drawing may take: where epochs are short, not every one is drawn, but the last is."""


class TrainProgress:
    """``Observer``: a bar, a plain line per epoch, and the curves in the run folder.

    Args:
        run_dir: where ``CURVES`` is drawn from metrics.csv.
    """

    def __init__(self, messages: Messages, epochs: int, run_dir: Path):
        self.messages = messages
        self.epochs = epochs
        self.run_dir = run_dir
        self.undrawn = False
        self.drawing = True
        self.drawn_at, self.drawing_seconds = -float("inf"), 0.0
        self._open = contextlib.ExitStack()
        self._done = 0

    def __enter__(self) -> Self:
        if not (self.run_dir / METRICS).exists():  # else training goes on from there
            (self.run_dir / CURVES).unlink(missing_ok=True)
        self._advance = self._open.enter_context(self.messages.bar("starting", unit="batches"))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()
        if self.undrawn:
            self._draw_curves()

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move the bar; ``loss`` is the epoch's mean so far."""
        done = (epoch - 1) * steps + step
        text = f"epoch {epoch}/{self.epochs}  loss {loss:.3f}"
        self._advance(done - self._done, total=self.epochs * steps, text=text)
        self._done = done

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """One line: loss, the figure that chooses the epoch, speed, and what CRAM and SMRAM do."""
        parts = [
            f"epoch {epoch}/{self.epochs}",
            f"loss {row['loss']:.3f}",
            f"{row['images_per_second']:.1f} images/s",
        ]
        if any(name.startswith("val_") for name in row):
            parts.insert(2, f"val {headline(row, 'val_')}{' *' if best else ''}")
        if "loss_div" in row:
            parts.append(f"L_div {row['loss_div']:.3f}")
        suppressed = [f"{100 * value:.0f}" for name, value in row.items() if name.startswith("suppressed_")]
        if suppressed:
            parts.append(f"channels suppressed {'/'.join(suppressed)} %")
        self.messages.note("  ".join(parts))
        self.undrawn = True
        if self.drawing_seconds <= CURVES_SHARE * (time.monotonic() - self.drawn_at):
            self._draw_curves()

    def on_warning(self, message: str) -> None:
        """One line."""
        self.messages.warn(message)

    def _draw_curves(self) -> None:
        if not self.drawing:
            return
        start = time.monotonic()
        try:
            from fgvc_cli.charts.figures import draw_curves

            rows = read_metrics(self.run_dir / METRICS)
            picture = draw_curves(rows, self.run_dir.resolve().name)
            with AtomicFile(self.run_dir / CURVES, overwrite=True) as stream:
                stream.write(picture)
        # A picture must not end a training, and matplotlib, its fonts and the disk may raise anything.
        except Exception as error:
            self.drawing = False
            why = " ".join(str(error).split()) or type(error).__name__
            self.on_warning(f"no {CURVES} from here on: {why}")
        self.undrawn = False
        self.drawn_at = time.monotonic()
        self.drawing_seconds = self.drawn_at - start


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.csv; an empty cell is left out.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else than numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
