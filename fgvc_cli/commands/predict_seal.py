"""The part of ``fgvc predict`` that each process does: images -> sealed rows of its shard."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgvc_cli.commands.predict_options import BATCH_SIZE, PredictOptions

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from fgvc_cli.formats.rows import Block
    from fgvc_cli.predict.predictor import Predictor
    from fgvc_cli.run.resume import RunFolder, ShardWalk
    from fgvc_cli.run.run_files import ShardOf
    from fgvc_cli.sources.find import Images


class Listener(Protocol):
    """What is told how far it is: ``PredictProgress``, or the pipe to it from another process."""

    total: Callable[[], int | None]
    passed_over: Callable[[], list[str]]

    def note(self, text: str) -> None: ...
    def resumed(self, rows: int, statuses: Counter[str]) -> None: ...
    def on_block(self, block: Block) -> None: ...
    def on_retried(self, block: Block) -> None: ...
    def on_unreadable(self, folder: Path | str, error: OSError) -> None: ...


def open_images(options: PredictOptions, progress: Listener, shard: ShardOf | None = None) -> ShardWalk:
    """The images of the sources, those of a shard only.

    Raises:
        FgvcError: as ``find_images``.
    """
    from fgvc_cli.run.resume import ShardWalk
    from fgvc_cli.run.run_files import WHOLE
    from fgvc_cli.sources.find import STDIN
    from fgvc_cli.sources.remote import is_url

    images = _find(options, progress.on_unreadable)
    progress.passed_over = lambda: images.passed_over
    for line in images.notes:
        progress.note(line)
    shard = shard or WHOLE
    progress.total = lambda: _share(images.total, shard)
    # A note says that the walk costs about as much as reading; what comes on stdin comes once.
    once = images.notes or options.nested or STDIN in options.sources or any(map(is_url, options.sources))
    return ShardWalk(images, shard, None if once else partial(_list_again, options))


def _list_again(options: PredictOptions) -> Images:
    """The images of all shards, without a word on folders that cannot be listed."""
    return _find(options, lambda folder, error: None)


def _find(options: PredictOptions, on_unreadable: Callable[[Path | str, OSError], None]) -> Images:
    from fgvc_cli.sources.find import find_images

    sources = list(options.sources)
    return find_images(
        sources,
        on_unreadable,
        null=options.null,
        all_files=options.all_files,
        nested=options.nested,
        frames=options.frame_choice,
    )


def _share(total: int | None, shard: ShardOf) -> int | None:
    return None if total is None else (total - shard.index + shard.count - 1) // shard.count


def open_predictor(options: PredictOptions, progress: Listener, shard: ShardOf | None = None) -> Predictor:
    """The model, ready to predict as the options say; for a shard of a run where there is one.

    Raises:
        FgvcError: weights or a device that are not there, settings that cannot be.
    """
    from fgvc_cli.engine.device import keep_freed_memory
    from fgvc_cli.engine.weights import default_notice, open_weights
    from fgvc_cli.predict.predictor import Predictor

    keep_freed_memory()
    if options.weights is None:
        progress.note(default_notice())
    device = _device(options.device)
    checkpoint = open_weights(options.weights, options={"stages": options.stages, "cascade": options.cascade})
    if options.raw:
        checkpoint.preprocess = checkpoint.preprocess.model_copy(update={"raw": options.raw})
    predictor = Predictor(
        checkpoint,
        device=device,
        batch_size=_batch_size(options, progress, shard),
        workers=options.workers,
        top_k=options.top_k,
        extras=options.outputs.needed(),
        min_prob=options.min_prob,
        amp=_amp(options, device, shard),  # type: ignore[arg-type]
        compile=options.compile,
        fast_decode=options.fast_decode,
        on_event=progress.note,
    )
    if choice := options.frame_choice:
        predictor.info.settings["frames"] = {"limit": choice.limit, "every_s": choice.every_s}
    return predictor


def _amp(options: PredictOptions, device: str, shard: ShardOf | None) -> str:
    """``auto`` is what the run was begun with: a probe may answer otherwise the second time.

    The shards of a run need one answer too. That of a card follows from its kind; for CPUs it is float32.
    """
    if options.amp != "auto" or not options.out:
        return options.amp
    if recorded := _recorded(options, shard, "precision"):
        return "none" if recorded == "float32" else recorded
    if shard and shard.count > 1:
        from fgvc_cli.engine.device import pick_device

        return "none" if pick_device(device).type == "cpu" else "auto"
    return "auto"


def _batch_size(options: PredictOptions, progress: Listener, shard: ShardOf | None) -> int | Literal["auto"]:
    """What the run was begun with; where another number is given, the run will be refused."""
    if isinstance(options.batch_size, int):
        return options.batch_size
    otherwise = options.batch_size or BATCH_SIZE
    recorded = _recorded(options, shard, "batch_size") if options.out else None
    if not isinstance(recorded, int) or recorded == otherwise:
        return otherwise
    progress.note(f"Batch size {recorded}, as this run was begun.")
    return recorded


def _recorded(options: PredictOptions, shard: ShardOf | None, name: str) -> Any:
    """A setting of the run that this one goes on with or mends; None where there is none."""
    from fgvc_cli.run.retry import finished_setting
    from fgvc_cli.run.run_files import WHOLE, partial_folder, recorded_setting

    if options.restart:
        return None
    recorded = recorded_setting(partial_folder(options.out[0]), name, shard or WHOLE)
    return finished_setting(options.out, name) if recorded is None and options.retry_failed else recorded


def _device(name: str) -> str:
    """``auto`` under torchrun is the device of this process on its machine."""
    local = os.environ.get("LOCAL_RANK", "")
    if name != "auto" or not local.isdecimal() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(local) % count}" if count else "cpu"


def open_folder(options: PredictOptions, predictor: Predictor, shard: ShardOf) -> RunFolder:
    """The folder of this run; enter it.

    Raises:
        FgvcError: on entering, see ``RunFolder``.
    """
    from fgvc_cli.run.resume import RunFolder, run_identity
    from fgvc_cli.run.run_files import partial_folder

    identity = run_identity(predictor.info, options.sources)
    return RunFolder(partial_folder(options.out[0]), identity, shard=shard, restart=options.restart)


def seal_rows(
    options: PredictOptions,
    folder: RunFolder,
    images: ShardWalk,
    predictor: Predictor,
    progress: Listener,
) -> None:
    """Predict and seal all rows that the folder does not hold yet; what is finished when something stops it,
    Ctrl-C included, is sealed too.

    Raises:
        FgvcError: an output that has come into being since it was looked for; another list of images than
            before; a disk that is full; what the predictor raises.
    """
    from fgvc_cli.formats.provenance import Origin
    from fgvc_cli.run.merge import merging_outputs
    from fgvc_cli.run.parts import ShardWriter
    from fgvc_cli.run.retry import mended_outputs

    # Again, now that the folder is locked: the process that held it may have just put them there.
    mended = mended_outputs(options.out, folder.root) if options.retry_failed else set()
    allowed = merging_outputs(folder.root) | mended
    options.outputs.check(overwrite=options.overwrite, allowed=allowed)
    Origin.of(options.sources).write(folder.path)
    if options.retry_failed:
        _retry(options, folder, images, predictor, progress)
    else:
        folder.skip_sealed(images)
    progress.resumed(folder.rows, folder.statuses)
    rows, statuses = folder.rows, folder.statuses.copy()
    if not folder.done:
        with (
            _whole_list(folder, images, progress),
            ShardWriter(folder.path, first=folder.rows) as writer,
            closing(predictor.blocks(images, first=folder.rows)) as blocks,
        ):
            try:
                for block in blocks:
                    writer.add(block)
                    progress.on_block(block)
                    statuses.update(block.status)
            finally:
                writer.flush()
            rows = writer.next_row
    folder.finish(rows, statuses, images.seen())


def _whole_list(folder: RunFolder, images: ShardWalk, progress: Listener) -> AbstractContextManager[object]:
    """The list that this run was begun with is the list still; or it is written down while this one works.

    Raises:
        FgvcError: it has changed.
    """
    from fgvc_cli.run.file_list import ListRecord, check_list
    from fgvc_cli.run.run_files import LIST

    def on_total(total: int) -> None:
        progress.total = lambda: _share(total, folder.shard)

    if images.again is None:
        return nullcontext()
    if (folder.path / LIST).exists():
        on_total(check_list(folder.path, images.again()))
        return nullcontext()
    return ListRecord(folder.path, images.again, on_total)


def _retry(
    options: PredictOptions,
    folder: RunFolder,
    images: ShardWalk,
    predictor: Predictor,
    progress: Listener,
) -> None:
    from fgvc_cli.run.retry import retry_failed, take_apart

    take_apart(options.out, folder, predictor.info)
    retry_failed(folder, images, predictor, progress.on_retried)
