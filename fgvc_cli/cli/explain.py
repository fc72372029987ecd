"""``fgvc explain``: options, help, and what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fgvc_cli.cli.options import (
    BatchSize,
    BoxCategory,
    BoxConf,
    Boxes,
    BoxMargin,
    Cascade,
    Device,
    Quiet,
    Stages,
    Workers,
)
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.explain.options import ExplainOptions


def explain(
    image: Annotated[Path, typer.Argument(help="An image; or a folder, .zip or .tar of them.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="model.safetensors of a training, or an embedded model (fgvc models lists them). "
            "Repeatable: a figure with a row per model, LABEL=FILE names it; the folder of a table "
            "stands for its rows."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG to write, a new folder for many. Default: <image>.explain.png here."),
    ] = None,
    boxes: Boxes = None,
    box_conf: BoxConf = None,
    box_margin: BoxMargin = None,
    box_category: BoxCategory = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Maps to draw: features, object, rollout, occlusion, occlusion-blur, hirescam, gradcam. "
            "Repeatable. Default: what the model itself shows; for a class, occlusion, which is slow "
            "(100 passes) and passes every test of honesty (docs, Which map to believe)."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain, by occlusion, hirescam or gradcam. Default: the likeliest."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Class to hold it against: why this one and not that one.")
    ] = None,
    page: Annotated[
        Literal["full", "strip"] | None,
        typer.Option(help="full or strip. Default: full for one image, strip for many."),
    ] = None,
    parts_dir: Annotated[
        Path | None,
        typer.Option(help="New folder for each map as a 16-bit PNG, 65535 being 1; or an .h5 for all maps."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to print; the first ten are drawn as bars.")] = 5,
    device: Device = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    batch_size: BatchSize = 16,
    workers: Workers = 2,
    nearest: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Compare with so many training images of each likely class and overall, the nearest in "
            "embedding, from the index that fgvc index makes. A picture shows the first six.",
        ),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Their index. Default: the one beside the weights.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the picture, or the .h5; a folder never is.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Show where the model looked: its box, the maps of its stages or of a method, its best guesses."""
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages, spare_cores
    from fgvc_cli.explain.options import ExplainOptions

    options = ExplainOptions(**given)
    spare_cores()
    return run(options, ConsoleMessages(quiet=quiet))


def run(options: ExplainOptions, messages: ConsoleMessages) -> int:
    """Explain, and print what was found: a line per class, ``0.5000  bee``.

    Known images that are nearest follow, four cells between tabs: ``nearest``, the similarity, the class, the
    path.
    """
    from fgvc_cli.charts.drawing import one_line
    from fgvc_cli.explain.outputs import INDEX
    from fgvc_cli.explain.run import explain

    explained = explain.run(replace(options, messages=messages))
    if not explained.explanations:
        outs = [explained.out / INDEX]
        failed = messages.summary(explained.statuses, outs, unread_folders=explained.unread_folders)
        return EXIT_SOME_FAILED if failed else EXIT_OK
    for each in explained.explanations:
        for guess, prob in each.explanation.top:
            model = f"  {one_line(each.label)}" if each.label else ""
            print(f"{prob:.4f}  {one_line(guess)}{model}")
        for near in each.explanation.nearest.overall if each.explanation.nearest else ():
            cells = ("nearest", f"{near.similarity:.4f}", "|".join(near.labels), near.path)
            print("\t".join(map(one_line, cells)))
    messages.note(f"picture: {explained.out}")
    return EXIT_OK
