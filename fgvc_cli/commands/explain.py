"""fgvc explain: one photograph -> its most probable classes on stdout, and one picture of why.

Known photographs that are nearest follow on stdout, four cells between tabs: ``nearest``, the similarity, the
class, the path.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.explain_options import ExplainOptions
from fgvc_cli.errors import EXIT_OK, FgvcError

if TYPE_CHECKING:
    from PIL import Image

    from fgvc_cli.sources.images import Reading


def run(options: ExplainOptions) -> int:
    """Explain one photograph, or all of a folder or archive (see ``explain_folder``).

    Raises:
        FgvcError: what cannot be written (found out first), a photograph that cannot be read, weights or a
            device that are not there, a class or a method that is not known.
    """
    # As in predict: by default a thread that waits for another spins and takes the core of a reader. Read
    # once, as torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options.check()
    if options.many:
        from fgvc_cli.commands.explain_folder import run_folder

        return run_folder(options)
    from fgvc_cli.commands.explain_folder import draw

    console = stderr_console()
    from fgvc_cli.explain.explanation import LabelledExplanation
    from fgvc_cli.files import AtomicFile
    from fgvc_cli.sources.images import Reading

    picture, name = options.target_path, options.image.name
    with (
        AtomicFile(picture, overwrite=options.overwrite) as stream,
        options.open_parts() if options.parts_dir else contextlib.nullcontext() as parts,
    ):
        first = _read(options.image, Reading())
        if options.weights is None and not options.quiet:
            from fgvc_cli.engine.weights import default_notice

            console.print(default_notice(), markup=False)
        with options.open_explainers() as explainers:
            # Models may differ in what they make of a colour profile.
            readings = [explainer.reading for explainer in explainers.values()]
            photographs = [first if each == Reading() else _read(options.image, each) for each in readings]
            explained = [
                LabelledExplanation(label, explainer.explain([explainer.prepare(photograph)])[0])
                for (label, explainer), photograph in zip(explainers.items(), photographs, strict=True)
            ]
        draw(explained, name, options.page or "full").save(stream, "PNG")
        if parts:
            parts.begin(explainers)
            parts.add_maps(name, explained, size=photographs[0].size)

    from fgvc_cli.explain.text import one_line

    for each in explained:
        for guess, prob in each.explanation.top:
            model = f"  {one_line(each.label)}" if each.label else ""
            print(f"{prob:.4f}  {one_line(guess)}{model}")
        for near in each.explanation.nearest.overall if each.explanation.nearest else ():
            cells = ("nearest", f"{near.similarity:.4f}", "|".join(near.labels), near.path)
            print("\t".join(map(one_line, cells)))
    if not options.quiet:
        console.print(f"picture: {picture}", markup=False)
    return EXIT_OK


def _read(path: Path, reading: Reading) -> Image.Image:
    from fgvc_cli.sources.images import DecodedImage, read_image

    decoded = read_image(path, rule=reading)
    if isinstance(decoded, DecodedImage):
        return decoded.image
    raise FgvcError(f"Cannot read {path}: {decoded.error} ({decoded.status}).")
