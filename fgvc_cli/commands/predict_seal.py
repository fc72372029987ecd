"""The part of ``fgvc predict`` that each process does: images -> sealed rows of its shard."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fgvc_cli.commands.predict_options import PredictOptions

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from fgvc_cli.data.find import Images
    from fgvc_cli.predict.predictor import Predictor
    from fgvc_cli.predict.resume import RunFolder, ShardWalk
    from fgvc_cli.predict.rows import Block
    from fgvc_cli.predict.run_files import ShardOf


class Listener(Protocol):
    """What is told how far it is: ``PredictProgress``, or the pipe to it from another process."""

    total: Callable[[], int | None]

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
    from fgvc_cli.data.find import find_images
    from fgvc_cli.predict.resume import ShardWalk
    from fgvc_cli.predict.run_files import WHOLE

    images = find_images(list(options.sources), progress.on_unreadable, null=options.null)
    for line in images.notes:
        progress.note(line)
    shard = shard or WHOLE
    progress.total = lambda: _share(images, shard.index, shard.count)
    return ShardWalk(images, shard)


def _share(images: Images, index: int, count: int) -> int | None:
    total = images.total
    return None if total is None else (total - index + count - 1) // count


def open_predictor(options: PredictOptions, progress: Listener, shard: ShardOf | None = None) -> Predictor:
    """The model, ready to predict as the options say; for a shard of a run where there is one.

    Raises:
        FgvcError: weights or a device that are not there, settings that cannot be.
    """
    from fgvc_cli.engine.allocator import keep_freed_memory
    from fgvc_cli.engine.weights import default_notice, open_weights
    from fgvc_cli.predict.predictor import Predictor

    keep_freed_memory()
    if options.weights is None:
        progress.note(default_notice())
    device = _device(options.device)
    return Predictor(
        open_weights(options.weights, options={"stages": options.stages, "cascade": options.cascade}),
        device=device,
        batch_size=options.batch_size,
        workers=options.workers,
        top_k=options.top_k,
        extras=options.outputs.needed(),
        min_prob=options.min_prob,
        amp=_amp(options, device, shard),  # type: ignore[arg-type]
        compile=options.compile,
        fast_decode=options.fast_decode,
        on_event=progress.note,
    )


def _amp(options: PredictOptions, device: str, shard: ShardOf | None) -> str:
    """``auto`` is what the run was begun with: a probe may answer otherwise the second time.

    The shards of a run need one answer too. That of a card follows from its kind; for CPUs it is float32.
    """
    if options.amp != "auto" or not options.out:
        return options.amp
    from fgvc_cli.predict.retry import recorded_precision
    from fgvc_cli.predict.run_files import partial_folder, recorded_setting

    recorded = None if options.restart else recorded_setting(partial_folder(options.out[0]), "precision")
    if not recorded and options.retry_failed:
        recorded = recorded_precision(options.out)
    if recorded:
        return "none" if recorded == "float32" else recorded
    if shard and shard.count > 1:
        from fgvc_cli.engine.device import pick_device

        return "none" if pick_device(device).type == "cpu" else "auto"
    return "auto"


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
    from fgvc_cli.predict.resume import RunFolder, run_identity
    from fgvc_cli.predict.run_files import partial_folder

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
    from fgvc_cli.predict.merge import merging_outputs
    from fgvc_cli.predict.retry import mended_outputs
    from fgvc_cli.predict.shards import ShardWriter

    # Again, now that the folder is locked: the process that held it may have just put them there.
    mended = mended_outputs(options.out, folder.root) if options.retry_failed else set()
    allowed = merging_outputs(folder.root) | mended
    options.outputs.check(overwrite=options.overwrite, allowed=allowed)
    if options.retry_failed:
        _retry(options, folder, images, predictor, progress)
    else:
        folder.skip_sealed(images)
    progress.resumed(folder.rows, folder.statuses)
    rows, statuses = folder.rows, folder.statuses.copy()
    if not folder.done:
        with (
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


def _retry(
    options: PredictOptions,
    folder: RunFolder,
    images: ShardWalk,
    predictor: Predictor,
    progress: Listener,
) -> None:
    from fgvc_cli.predict.retry import retry_failed, take_apart

    take_apart(options.out, folder, predictor.info)
    retry_failed(folder, images, predictor, progress.on_retried)
