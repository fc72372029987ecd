"""Options that several commands share, and how every command ends. Nothing heavy is imported here."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, FgvcError

Weights = Annotated[
    str | None,
    typer.Option(
        help="model.safetensors or folder of a training, or an embedded model (fgvc models lists them)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Parallel readers of photographs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Photographs per forward pass.")]
Stages = Annotated[
    Literal["main", "main+object", "all"] | None,
    typer.Option(help="Looks of a multi-stage ViT: main, main+object or all. Default: as trained, or all."),
]
Cascade = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Multi-stage ViT: photographs this sure after a look take no further one, e.g. 0.9.",
    ),
]
Outs = Annotated[
    list[Path] | None,
    typer.Option(
        help="File to write: .csv, .jsonl, .h5 or .parquet. Repeatable. Default: CSV rows on stdout."
    ),
]
Maps = Annotated[bool, typer.Option("--maps", help="Store attention maps in the .h5 or .parquet.")]
Crops = Annotated[bool, typer.Option("--crops", help="Store crops of the objects there, as JPEG.")]
Embeddings = Annotated[bool, typer.Option("--embeddings", help="Store embeddings there.")]
Logits = Annotated[bool, typer.Option("--logits", help="Store the scores of all classes there.")]
CropsDir = Annotated[Path | None, typer.Option(help="New folder for a JPEG of each object.")]
MapsDir = Annotated[Path | None, typer.Option(help="New folder for a 16-bit PNG of each attention map.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors on stderr.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder that holds known sets. Default: $FGVC_DATA.")]


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """A user error becomes one line on stderr and its exit code; Ctrl-C exits 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except FgvcError as error:
            print(f"fgvc: {error}", file=sys.stderr)
            code = error.exit_code
        except BrokenPipeError:
            sys.stderr.close()
            code = EXIT_ERROR
        except OSError as error:
            print(f"fgvc: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
            code = EXIT_ERROR
        except KeyboardInterrupt:
            print("fgvc: interrupted.", file=sys.stderr)
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    wrapper.__doc__ = _unwrapped(command.__doc__ or "")
    return wrapper


def _unwrapped(text: str) -> str:
    """Each paragraph in one line, which --help then breaks as the terminal is wide; typer itself does so with
    the first one only, and paragraphs that begin with \\b stay as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)
