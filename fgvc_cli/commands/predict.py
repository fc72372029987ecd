"""fgvc predict: photographs -> one row each, in files or on stdout; talk on stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.predict_options import PredictOptions, pick_shard
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.commands.predict_seal import open_folder, open_images, open_predictor, seal_rows
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED


def run(options: PredictOptions) -> int:
    """Predict; returns the exit code of design.md: 0, 3 where a row failed, 130 after Ctrl-C.

    Rows go to stdout as they come, or to sealed shards in OUT.partial and from there, all at once, into the
    outputs; the same command goes on where another one ended.

    Raises:
        FgvcError: an output that cannot be written (found out first), sources without an image, weights or a
            device that are not there, another run in OUT.partial.
    """
    # Decoders share the cores: by default a thread of the model that waits for another spins and takes
    # theirs. Read once, as torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    shared_terminal = not options.out and sys.stdout.isatty()
    progress = PredictProgress(stderr_console(), quiet=options.quiet, live=not shared_terminal)
    try:
        with second_ctrl_c_ends():
            options.check()
            if options.out:
                _to_files(options, progress)
            else:
                _to_stdout(options, progress)
    except KeyboardInterrupt:
        progress.interrupted(options.out[0] if options.out else None, kept=_kept(options))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_ERROR
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK


def _to_stdout(options: PredictOptions, progress: PredictProgress) -> None:
    from fgvc_cli.formats.csv_rows import StdoutSink

    pick_shard(options, os.environ)  # which refuses torchrun without --out
    images = open_images(options, progress)
    predictor = open_predictor(options, progress)
    with StdoutSink() as sink, progress, closing(predictor.blocks(images)) as blocks:
        sink.begin(predictor.info)
        for block in blocks:
            sink.write(block)
            progress.on_block(block)
    progress.summary(())


def _to_files(options: PredictOptions, progress: PredictProgress) -> None:
    shard = pick_shard(options, os.environ)
    from fgvc_cli.run.merge import merge_run, merging_outputs
    from fgvc_cli.run.retry import mended_outputs
    from fgvc_cli.run.run_files import partial_folder, sweep_removed

    outputs, root = options.outputs, partial_folder(options.out[0])
    sweep_removed(root)
    mended = mended_outputs(options.out, root) if options.retry_failed else set()
    # What a restart discards gives no leave to replace anything: asked before, not behind it.
    placed = set() if options.restart else merging_outputs(root)
    outputs.check(overwrite=options.overwrite, allowed=placed | mended)
    if options.devices:
        from fgvc_cli.commands.predict_devices import run_devices

        return run_devices(options, progress)
    images = open_images(options, progress, shard)
    predictor = open_predictor(options, progress, shard)
    with open_folder(options, predictor, shard) as folder:
        with progress:
            seal_rows(options, folder, images, predictor, progress)
        if shard.count == 1:
            merge_run(root, outputs, overwrite=options.overwrite)
    if shard.count > 1:
        progress.summary(())
        progress.note(f"Shard {shard.index}/{shard.count} is complete. When all are: {merge_hint(options)}")
    else:
        progress.summary(outputs.paths())


def merge_hint(options: PredictOptions) -> str:
    """What to type when all shards are complete."""
    flags = [f"--{name}" for name in ("maps", "crops", "embeddings", "logits") if getattr(options, name)]
    folders = [("--crops-dir", options.crops_dir), ("--maps-dir", options.maps_dir)]
    folders += [("--per-file", options.per_file)]
    flags += [f"{flag} {folder}" for flag, folder in folders if folder]
    return " ".join(["fgvc merge", *map(str, options.out), *flags])


def _kept(options: PredictOptions) -> bool:
    if not options.out:
        return False
    from fgvc_cli.run.run_files import partial_folder

    return partial_folder(options.out[0]).is_dir()


@contextlib.contextmanager
def second_ctrl_c_ends() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt, so that finished rows are sealed; the second ends the
    process at once, which costs the rows that were not. A SIGINT that is ignored stays so."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not in_main or before in (signal.SIG_IGN, None):
        yield
        return

    def at_once(*_: object) -> None:
        os._exit(EXIT_INTERRUPTED)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, at_once)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _abandon_stdout() -> None:
    """Whoever read stdout, ``head`` for example, has gone; Python would flush it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
