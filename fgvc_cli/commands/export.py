"""fgvc export: a checkpoint -> one graph in a file, kept only if it answers as the model does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile, check_writable

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.engine.export import Format
    from fgvc_cli.engine.export_check import Difference
    from fgvc_cli.sources.find import Found
    from fgvc_cli.sources.images import ReadRule


def run(
    *,
    weights: str | None,
    out: Path,
    check: str | None,
    pixels: str,
    stages: str | None,
    tolerance: float,
    overwrite: bool,
) -> int:
    """Export, compare with the model, and only then put the file at ``out``.

    Raises:
        FgvcError: an ending, option or file that cannot be; a model that cannot be exported; a graph that
            answers otherwise than the model.
    """
    if pixels not in ("uint8", "float"):
        raise FgvcError(f"--pixels got {pixels!r}, expected uint8 or float.", None, EXIT_USAGE)
    kind: Literal["uint8", "float"] = "uint8" if pixels == "uint8" else "float"
    from fgvc_cli.engine.export import describe, pick_format, trace
    from fgvc_cli.engine.export_check import compare, generated_photos
    from fgvc_cli.engine.weights import default_notice

    form = pick_format(out)
    check_writable(out, overwrite=overwrite)
    console = stderr_console()
    found = _find(check) if check is not None else None
    if weights is None:
        console.print(default_notice(), markup=False)
    checkpoint = _open_all_looks(weights, stages, console)
    photos = generated_photos()
    if found is not None and check is not None:
        photos = _read(found, check, console, checkpoint.preprocess)
    with console.status(f"exporting {checkpoint.name}"):
        program = trace(checkpoint, kind)
        metadata = describe(checkpoint, kind, program)
        with AtomicFile(out, overwrite=overwrite) as stream:
            form.write(program, metadata, stream)
            stream.flush()
            size = os.fstat(stream.fileno()).st_size
            difference = compare(checkpoint, kind, form.open(Path(stream.name)), photos)
            limit_px = _judge(difference, out, tolerance, checkpoint, check)
    print(_report(out, form, metadata, size, difference, tolerance, limit_px))
    return EXIT_OK


def _open_all_looks(weights: str | None, stages: str | None, console: Console) -> Checkpoint:
    """The checkpoint, without a cascade: in a graph every photograph takes every look."""
    from fgvc_cli.engine.weights import open_weights

    checkpoint = open_weights(weights, options={"stages": stages})
    cascade = getattr(checkpoint.model.config, "cascade", None)
    if cascade is None or cascade >= 1:
        return checkpoint
    console.print(f"The cascade of {cascade} is left out: in a graph every photograph takes every look.")
    return open_weights(weights, options={"stages": stages, "cascade": 1.0})


def _find(source: str) -> Iterator[Found]:
    """Raises ``FgvcError`` where the source does not exist or holds no image."""
    from fgvc_cli.sources.find import find_images

    return find_images([source])


def _read(
    found: Iterable[Found], source: str, console: Console, rule: ReadRule
) -> Iterator[tuple[str, Image.Image]]:
    """Photographs that can be read, one at a time; others are named on the console."""
    from fgvc_cli.sources.images import Failure, read_image

    read = 0
    for item in found:
        decoded = read_image(item.path, rule=rule)
        if isinstance(decoded, Failure):
            console.print(f"warning: left out {item.name}: {decoded.error}", markup=False)
            continue
        read += 1
        yield item.name, decoded.image
    if not read:
        raise FgvcError(f"No photograph of {source} could be read.", "Check the files named above.")


def _judge(
    difference: Difference, out: Path, tolerance: float, checkpoint: Checkpoint, check: str | None
) -> float:
    """The box tolerance, pixels.

    Raises:
        FgvcError: differences beyond the tolerances.
    """
    from fgvc_cli.engine.export_check import BOX_SHARE, LEAST_BOX_PX

    limit_px = max(LEAST_BOX_PX, BOX_SHARE * checkpoint.preprocess.input_px)
    if difference.probs <= tolerance and difference.box_px <= limit_px:
        return limit_px
    raise FgvcError(
        f"The graph is not the model: over {difference.images} photographs its probabilities differ by up to "
        f"{difference.probs:.2g} (tolerance {tolerance:g}; {difference.worst}), its boxes by up to "
        f"{difference.box_px:.2f} px (tolerance {limit_px:.2f}); {out.name} was not written.",
        ("Allow more with --tolerance. " if difference.probs > tolerance else "")
        + ("" if check else "Name your own photographs with --check."),
    )


def _report(
    out: Path,
    form: Format,
    metadata: dict[str, Any],
    size: int,
    difference: Difference,
    tolerance: float,
    limit_px: float,
) -> str:
    """What was written, for people."""
    lines = [f"{out}: {metadata['model']} as {form.name}, {size / 1e6:.1f} MB"]
    lines.append(f"  input    {metadata['input']}")
    lines += [f"  {name:20s} {text}" for name, text in metadata["outputs"].items()]
    lines.append(
        f"  checked against the model on {difference.images} photographs: probabilities within "
        f"{difference.probs:.1e} (tolerance {tolerance:g}), boxes within {difference.box_px:.2f} px "
        f"(tolerance {limit_px:.2f}), heat within {difference.heat:.1e}, {difference.labels} other labels"
    )
    return "\n".join(lines)
