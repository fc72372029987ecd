"""fgvc merge: the complete shards of ``fgvc predict --shard i/n`` -> the outputs."""

from __future__ import annotations

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.predict_options import PredictOptions
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError


def run(options: PredictOptions) -> int:
    """Merge; exit code 0, or 3 where a row failed.

    Args:
        options: ``out``, what the outputs hold, ``overwrite`` and ``quiet``; the rest is not looked at.

    Raises:
        FgvcError: a shard that is missing, incomplete, in use or of another run; extras that the rows do not
            carry; an output that exists or cannot be written.
    """
    from fgvc_cli.run.merge import merge_shards, merging_outputs
    from fgvc_cli.run.run_files import partial_folder

    progress = PredictProgress(stderr_console(), quiet=options.quiet, live=False)
    if not options.out:
        raise FgvcError("No output given.", "fgvc merge OUT, as it was named to predict", EXIT_USAGE)
    root = partial_folder(options.out[0])
    options.outputs.check(overwrite=options.overwrite, allowed=merging_outputs(root))
    merged = merge_shards(root, options.outputs, overwrite=options.overwrite)
    progress.merged(merged.rows, merged.statuses, options.outputs.paths())
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK
