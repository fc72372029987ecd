"""Options that several commands share, the panels and examples of help, and how every command ends.

Nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, FgvcError


def _embedded_models() -> list[str]:
    """Names to complete ``--weights`` with; the shell adds files."""
    from fgvc_cli.engine.weights import read_manifest

    return list(read_manifest().entries)


Weights = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        autocompletion=_embedded_models,
        help="model.safetensors or folder of a training, an embedded model (fgvc models lists them), or "
        "hf-hub:owner/name of the Hugging Face hub, with @revision if need be.",
    ),
]
AllWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="MODEL",
        autocompletion=_embedded_models,
        help="model.safetensors or folder of a training, an embedded model (fgvc models lists them), "
        "hf-hub:owner/name, or an exported .onnx. Several: the mean of their probabilities.",
    ),
]
Tta = Annotated[
    Literal["flip"] | None,
    typer.Option(help="flip: the mean over the image and its mirror image, at twice the time."),
]
Taxonomy = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="CSV of the tree of the classes: class, then ranks from coarse to fine, as class,order,family. "
        "Default: the model's or the known set's.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
RuntimeChoice = Annotated[
    Literal["auto", "onnxruntime", "openvino"],
    typer.Option(
        help="What runs an exported .onnx. auto: OpenVINO on a CPU where installed, else onnxruntime."
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Parallel readers of images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
Stages = Annotated[
    Literal["main", "main+object", "all"] | None,
    typer.Option(help="Stages that a multi-stage ViT runs: main, main+object or all. Default: as trained."),
]
Cascade = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Multi-stage ViT: images this certain after a stage go through no further one, e.g. 0.9.",
    ),
]
Index = Annotated[
    Path | None,
    typer.Option(help="Take the classes of this index (fgvc index) in place of the model's."),
]
IndexBy = Annotated[
    Literal["neighbours", "means"] | None,
    typer.Option(
        help="With --index: each class by the mean of its images (the default) or by its nearest one."
    ),
]
Outs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="File or URL (s3://...) to write: .csv, .jsonl, .h5, .parquet, FOLDER/ for Parquet parts; for "
        "others .md.json (MegaDetector), .coco.json, .ls.json (Label Studio). Repeatable. Default: CSV rows "
        "on stdout.",
    ),
]
Maps = Annotated[bool, typer.Option("--maps", help="Store attention maps in the .h5 or .parquet.")]
Crops = Annotated[bool, typer.Option("--crops", help="Store crops of the objects there, as JPEG.")]
Embeddings = Annotated[bool, typer.Option("--embeddings", help="Store embeddings there.")]
Logits = Annotated[bool, typer.Option("--logits", help="Store the scores of all classes there.")]
CropsDir = Annotated[Path | None, typer.Option(help="New folder for a JPEG of each object.")]
MapsDir = Annotated[Path | None, typer.Option(help="New folder for a 16-bit PNG of each attention map.")]
PerFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="One more .csv, a row per file: of its frames, the mean of their probabilities."
    ),
]
Boxes = Annotated[
    Path | None,
    typer.Option(help="Boxes to look at, one by one: MegaDetector JSON, COCO JSON or CSV path,x1,y1,x2,y2."),
]
BoxConf = Annotated[float | None, typer.Option(min=0, max=1, help="Only boxes of at least this score.")]
BoxMargin = Annotated[
    float | None,
    typer.Option(min=0, max=2, help="Cut so much more on each side, as a fraction of the box: 0.1."),
]
BoxCategory = Annotated[
    list[str] | None, typer.Option(help="Only boxes of this category, by name or id. Repeatable.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only errors on stderr.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder that holds known sets. Default: $FGVC_DATA.")]


PANELS = {
    panel: tuple(options.split())
    for panel, options in {
        "Input": """
            --data --dataset --data-root --split-by --split --add --images --labels --boxes --box-conf
            --box-margin --box-category --only --classes --reviewed --null --all-files --nested --frames
            --every --raw --formats
        """,
        "Output": """
            --out --overwrite --dry-run --top-k --min-prob --unknown --thresholds --maps --crops
            --embeddings --logits --crops-dir --maps-dir --per-file --exif --group --parts-dir --page
            --title --thumbs --thumb-px --review --serve --port --pixels --json --quiet
        """,
        "Model": """
            --model --weights --init --pretrained --license --private --stages --cascade predict:--index
            eval:--index --by --calibrate --tta --fit-novelty --target-precision eval:--against --input-px
            --taxonomy --rollup
        """,
        "Training": "--recipe --epochs train:--batch-size --seed --set --show-config --ablate --seeds",
        "Explanation": "--method --target explain:--against --nearest --index",
        "Selection": "--count --doubt --pool",
        "Checks": "--check --tolerance --max-bits --min-images --minutes --folds --suspects",
        "Quantisation": "--int8 export:--calibrate",
        "Images": "--species --train --val --test --size-px aviary:--seed",
        "Speed": """
            --device --devices --workers --batch-size --amp --runtime --compile --fast-decode --ray
            --ray-gpus-per-worker --ray-cpus-per-worker
        """,
        "Resuming": "--resume --shard --restart --retry-failed --accept-list",
    }.items()
}
"""Panel of a help page -> its options. ``COMMAND:--option`` goes before ``--option``."""

VALUE_NAMES = {
    "--data": "DATA",
    "--dataset": "NAME",
    "--data-root": "FOLDER",
    "--weights": "MODEL",
    "--model": "NAME",
    "--init": "MODEL",
    "--recipe": "NAME",
    "--seeds": "N,N,...",
    "--device": "DEVICE",
    "--target": "CLASS",
    "--against": "NAME",
    "--crops-dir": "FOLDER",
    "--maps-dir": "FOLDER",
    "--frames": "all|N",
    "--every": "TIME",
    "--per-file": "FILE",
    "--raw": "KIND",
    "--calibrate": "FILE",
    "--group": "WHAT",
    "--tta": "KIND",
    "--add": "DATA",
    "--license": "NAME",
    "--index": "FILE",
    "--by": "HOW",
    "--suspects": "FILE",
    "--folds": "N",
    "--fit-novelty": "FILE",
    "--thresholds": "FILE",
    "--classes": "FILE",
    "--unknown": "on|off|N",
    "--labels": "PATH",
    "--boxes": "FILE",
    "--box-category": "NAME",
    "--only": "FILE",
    "--reviewed": "FILE",
}
"""What an option takes, in a word, where its type does not say so."""

OTHER_PANEL = "Other"
"""``--help``, ``--version`` and what completes the shell."""

_PANEL_OF = {option: panel for panel, options in PANELS.items() for option in options}


def panel_of(command: str, names: Iterable[str]) -> str:
    """The panel of an option, by its names.

    Args:
        command: the last word of it, e.g. ``predict`` or ``aviary``.
    """
    for name in names:
        panel = _PANEL_OF.get(f"{command}:{name}") or _PANEL_OF.get(name)
        if panel:
            return panel
    return OTHER_PANEL


EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "fgvc predict photos/ --weights groceries --out preds.csv",
        "fgvc train --data my_classes/ --model crasmra-mobilenetv2_100",
    ),
    "train": (
        "fgvc train --data my_classes/ --model crasmra-mobilenetv2_100 --input-px 224",
        "fgvc train --resume runs/birds",
    ),
    "eval": (
        "fgvc eval --weights runs/birds --out measured",
        "fgvc eval --weights runs/birds --against groceries --data test_images/",
    ),
    "predict": (
        "fgvc predict photos/ --weights groceries --out preds.csv --min-prob 0.6",
        "fgvc predict photos/ --weights runs/birds --out preds.h5 --maps --crops",
    ),
    "merge": ("fgvc merge preds.csv", "fgvc merge preds.h5 --overwrite"),
    "index": ("fgvc index --weights runs/birds", "fgvc index --weights runs/birds --add new_species/"),
    "explain": (
        "fgvc explain bird.jpg --weights runs/birds",
        "fgvc explain photos/ --weights groceries --out explained --nearest 6",
    ),
    "report": ("fgvc report preds.h5 --out report.html", "fgvc report preds.h5 --serve --only todo.csv"),
    "select": (
        "fgvc select preds.h5 --count 200 --out todo.csv",
        "fgvc select preds.h5 --reviewed reviewed.csv --out next.csv",
    ),
    "export": (
        "fgvc export --weights groceries --out model.onnx",
        "fgvc export --weights runs/birds --out int8.onnx --int8 --calibrate photos/",
    ),
    "push": (
        "fgvc push runs/birds owner/birds --license cc-by-4.0",
        "fgvc push runs/birds owner/birds --license mit --dry-run --out card",
    ),
    "models": ("fgvc models", "fgvc models crasmra-convnext_tiny vitms-vit_small_patch16_224 --input-px 224"),
    "recipes": ("fgvc recipes", "fgvc recipes strong"),
    "datasets": ("fgvc datasets", "fgvc datasets get pets --data-root /data"),
    "datasets list": ("fgvc datasets list", "fgvc datasets list --data-root /data --json"),
    "datasets get": ("fgvc datasets get pets --data-root /data", "fgvc datasets get cub --data-root /data"),
    "datasets check": (
        "fgvc datasets check my_classes/",
        "fgvc datasets check labels.csv --weights runs/birds --suspects suspects.csv",
    ),
    "datasets make": ("fgvc datasets make aviary birds", "fgvc datasets make aviary birds --species 6"),
    "datasets make aviary": (
        "fgvc datasets make aviary birds --species 6 --train 30 --val 8 --test 10",
        "fgvc datasets make aviary large --size-px 512 --seed 1",
    ),
}
"""Command -> two lines as they are typed, for the end of its help."""


def check_given(values: Mapping[str, Any]) -> None:
    """Check what takes no torch to check, so that a mistyped name is answered at once.

    Args:
        values: the options of a command, by parameter name.

    Raises:
        FgvcError: no such device, data set, folder or CSV of labelled images, or weights.
    """
    device, dataset, data = values.get("device"), values.get("dataset"), values.get("data")
    weights = values.get("weights")
    if device:
        from fgvc_cli.config import check_device_name

        check_device_name(device)
    if dataset:
        from fgvc_cli.datasets.registry import find_known

        find_known(dataset)
    if data and not Path(data).exists():
        from fgvc_cli.data.labelled import load_labelled

        load_labelled(Path(data))  # raises: it says what it expects
    for source in values.get("sources") or filter(None, [values.get("image")]):
        from fgvc_cli.sources.find import check_named

        check_named(str(source))
    for name in [weights] if isinstance(weights, str) else weights or ():
        from fgvc_cli.engine.weights import resolve_weights

        if "=" not in name:  # fgvc explain takes NAME=MODEL
            resolve_weights(name)


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """A user error becomes one line on stderr and its exit code; Ctrl-C exits 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            check_given(kwargs)
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
