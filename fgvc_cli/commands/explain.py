"""fgvc explain: one photograph -> its most probable classes on stdout, and one picture of why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from PIL import Image


def run(
    image: Path,
    *,
    weights: str | None = None,
    out: Path | None = None,
    top_k: int = 5,
    device: str = "auto",
    stages: str | None = None,
    cascade: float | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Explain one photograph.

    Args:
        image: the photograph.
        weights: manifest name, file, or None for the default.
        out: the picture to appear, ending in .png; None is ``<stem>.explain.png`` in the current folder,
            never beside the photograph, where it would join the data.
        top_k: classes to print; the picture shows the first of them as bars.
        stages, cascade: settings of a multi-stage model to answer with; None: as trained.
        overwrite: replace the picture if it is there.
        quiet: nothing on stderr but errors.

    Raises:
        FgvcError: a picture that cannot be written (found out first), a photograph that cannot be read,
            weights or a device that are not there.
    """
    if top_k < 1:
        raise FgvcError(f"--top-k got {top_k}, expected 1 or more.", None, EXIT_USAGE)
    picture = out or Path(f"{image.stem}.explain.png")
    _check_name(picture, image)
    console = stderr_console()
    from fgvc_cli.atomic import AtomicFile

    with AtomicFile(picture, overwrite=overwrite) as stream:
        photograph = _read(image)

        from fgvc_cli.engine.device import pick_device
        from fgvc_cli.engine.weights import default_notice, open_weights
        from fgvc_cli.explain.render import render
        from fgvc_cli.explain.stages import explain_stages

        target = pick_device(device)
        if weights is None and not quiet:
            console.print(default_notice(), markup=False)
        checkpoint = open_weights(weights, options={"stages": stages, "cascade": cascade})
        checkpoint.model.to(target)
        explanation = explain_stages(checkpoint, photograph, top_k=top_k)
        render(explanation, title=image.name).save(stream, "PNG")

    from fgvc_cli.explain.text import one_line

    for name, prob in explanation.top:
        print(f"{prob:.4f}  {one_line(name)}")
    if not quiet:
        console.print(f"picture: {picture}", markup=False)
    return EXIT_OK


def _check_name(picture: Path, image: Path) -> None:
    if picture.suffix.lower() != ".png":
        raise FgvcError(f"--out got {str(picture)!r}, expected a name ending in .png.", None, EXIT_USAGE)
    if picture.exists() and image.exists() and picture.samefile(image):
        raise FgvcError(f"--out {picture} is the photograph itself.", "Name another file.", EXIT_USAGE)


def _read(path: Path) -> Image.Image:
    from fgvc_cli.data.images import DecodedImage, read_image

    decoded = read_image(path)
    if isinstance(decoded, DecodedImage):
        return decoded.image
    hint = "fgvc explain takes one photograph." if path.is_dir() else None
    raise FgvcError(f"Cannot read {path}: {decoded.error} ({decoded.status}).", hint)
