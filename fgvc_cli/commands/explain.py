"""fgvc explain: one photograph -> its most probable classes on stdout, and one picture of why.

Known photographs that are nearest follow on stdout, four cells between tabs: ``nearest``, the similarity, the
class, the path.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.explain_options import ExplainOptions
from fgvc_cli.errors import EXIT_OK, FgvcError

if TYPE_CHECKING:
    from PIL import Image

    from fgvc_cli.explain.explanation import Explanation


def run(options: ExplainOptions) -> int:
    """Explain one photograph, or all of a folder or archive (see ``explain_folder``).

    Raises:
        FgvcError: what cannot be written (found out first), a photograph that cannot be read, weights or a
            device that are not there, a class or a method that is not known.
    """
    options.check()
    if options.many:
        from fgvc_cli.commands.explain_folder import run_folder

        return run_folder(options)
    console = stderr_console()
    from fgvc_cli.atomic import AtomicFile
    from fgvc_cli.explain.folders import PartsFolder

    picture, name = options.target_path, options.image.name
    with AtomicFile(picture, overwrite=options.overwrite) as stream:
        photograph = _read(options.image)
        with PartsFolder(options.parts_dir) if options.parts_dir else contextlib.nullcontext() as parts:
            if options.weights is None and not options.quiet:
                from fgvc_cli.engine.weights import default_notice

                console.print(default_notice(), markup=False)
            with options.open_explainer() as explainer:
                explanation = explainer.explain([explainer.prepare(photograph)])[0]
            draw(explanation, name, options.page or "full").save(stream, "PNG")
            if parts:
                parts.add_maps(name, 0, explanation.maps)

    from fgvc_cli.explain.text import one_line

    for label, prob in explanation.top:
        print(f"{prob:.4f}  {one_line(label)}")
    for near in explanation.nearest.overall if explanation.nearest else ():
        cells = ("nearest", f"{near.similarity:.4f}", "|".join(near.labels), near.path)
        print("\t".join(map(one_line, cells)))
    if not options.quiet:
        console.print(f"picture: {picture}", markup=False)
    return EXIT_OK


def draw(explanation: Explanation, title: str, page: str) -> Image.Image:
    """The picture of an explanation, a full page or a strip."""
    from fgvc_cli.explain import render, strip

    return (strip.draw_strip if page == "strip" else render.render)(explanation, title=title)


def _read(path: Path) -> Image.Image:
    from fgvc_cli.data.images import DecodedImage, read_image

    decoded = read_image(path)
    if isinstance(decoded, DecodedImage):
        return decoded.image
    raise FgvcError(f"Cannot read {path}: {decoded.error} ({decoded.status}).")
