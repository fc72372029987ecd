"""The folder of a training: which one, made empty, and whether its training came to its end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fgvc_cli.config import TrainConfig
from fgvc_cli.errors import FgvcError


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
    from fgvc_cli.engine.logs import EVENT_FILES
    from fgvc_cli.engine.run_state import remove_state
    from fgvc_cli.engine.trainer import RUN_FILES

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
    from fgvc_cli.engine.checkpoint import read_metadata
    from fgvc_cli.engine.run_state import state_path
    from fgvc_cli.engine.trainer import CHECKPOINT

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
