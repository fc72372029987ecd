"""Mistakes in a command line: one line, as every other error, in place of typer's boxes."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer

from fgvc_cli.cli.help import HelpGroup
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK

# Of click, which older typers import and newer ones bring along: by this way it is the same for both.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


_SUGGESTION = re.compile(r"\.? (?=\(Possible |Did you mean )")
"""Where the parser's own suggestion begins."""


class OneLineGroup(HelpGroup):
    """Commands whose usage errors are one line on stderr: what arrived, what was expected, what to type."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As of every click command: runs one and ends the process with its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except UsageError as error:
            # ``fgvc`` alone: its help has been printed.
            if type(error).__name__ != "NoArgsIsHelpError":
                typed = sys.argv[1:] if args is None else list(args)
                print(f"fgvc: {self._explain(error, typed)}", file=sys.stderr)
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        except typer.Abort:
            print("fgvc: aborted.", file=sys.stderr)
            sys.exit(EXIT_ERROR)
        sys.exit(code if isinstance(code, int) else EXIT_OK)

    def _explain(self, error: Any, typed: Sequence[str]) -> str:
        """What a usage error says, in one line, with what arrived, and where to read on."""
        text = " ".join(error.format_message().split()).rstrip(".")
        meant = _meant(error, typed)
        if meant:
            text = f"{_SUGGESTION.split(text)[0]}. {meant}"
        value = _value_of(getattr(error, "param", None), typed)
        if value is not None and repr(value) not in text:
            text += f", got {value!r}"
        ending = "" if text.endswith(("?", "!", ".")) else "."
        return f"{text}{ending} Try: {self._command_path(typed)} --help"

    def _command_path(self, typed: Sequence[str]) -> str:
        """The commands at the start of what was typed, behind ``fgvc``."""
        names, group = ["fgvc"], self
        for word in typed:
            command = getattr(group, "commands", {}).get(word)
            if command is None:
                break
            names.append(word)
            group = command
        return " ".join(names)


class Foreign(NamedTuple):
    """Options that other programs have and this one calls otherwise."""

    names: str
    """Between spaces."""
    here: str
    """What to type, ``{}`` being the value; a sentence that ends with a full stop is said as it is."""
    commands: str = ""
    """The commands that it is for, between spaces; empty: all that have the option."""


FOREIGN = (
    Foreign("--lr --lr0 --learning-rate --base-lr --blr", "--set optim.lr_backbone={}"),
    Foreign("--opt --optim --optimizer", "--set optim.name={}"),
    Foreign("--weight-decay --wd", "--set optim.weight_decay={}"),
    Foreign("--momentum", "--set optim.momentum={}"),
    Foreign("--warmup-epochs --warmup", "--set optim.warmup_epochs={}"),
    Foreign("--clip-grad --max-norm --grad-clip", "--set optim.clip_grad={}"),
    Foreign("--sched --scheduler --lr-scheduler", "--set optim.schedule={}"),
    Foreign("--cos-lr", "--set optim.schedule=cosine"),
    Foreign("--layer-decay", "--set optim.layer_decay={}"),
    Foreign("--freeze --freeze-epochs", "--set optim.freeze_epochs={}"),
    Foreign("--mixup", "--set augment.mixup={}"),
    Foreign("--cutmix", "--set augment.cutmix={}"),
    Foreign("--hflip --fliplr", "--set augment.flip=yes"),
    Foreign("--no-aug", "--set augment.flip=no"),
    Foreign("--color-jitter", "--set augment.color_jitter={}"),
    Foreign("--aa --auto-augment", "--set augment.rand_augment=9"),
    Foreign("--reprob --erasing", "--set augment.erase={}"),
    Foreign("--smoothing --label-smoothing", "--set loss.label_smoothing={}"),
    Foreign("--drop-path", "--set options.drop_path={}"),
    Foreign("--drop --dropout", "--set options.drop_rate={}"),
    Foreign("--model-ema --ema", "--set ema_decay=0.999"),
    Foreign("--model-ema-decay --ema-decay", "--set ema_decay={}"),
    Foreign("--patience", "--set patience={}"),
    Foreign("--grad-accum-steps --accumulate --accum-iter --nbs", "--set accumulate={}"),
    Foreign("--grad-checkpointing", "--set grad_checkpointing=yes"),
    Foreign("--torchcompile --compile", "--compile"),
    Foreign("--torchcompile --compile", "--set compile=yes"),
    Foreign("--log-tensorboard --tensorboard", "--set tensorboard=yes"),
    Foreign("--sync-bn", "--set sync_batchnorm=yes"),
    Foreign("--val-split --val-fraction", "--set val_share={}", "train"),
    Foreign("--mean --std --crop-pct --crop-mode", "The checkpoint holds the preprocessing."),
    Foreign("--num-classes --nc", "The classes are those of the data.", "train"),
    Foreign("--num-classes --nc", "The checkpoint holds the classes."),
    Foreign("--batch --bs -b --batchsize", "--batch-size {}"),
    Foreign("--imgsz --img-size --img --image-size --input-size --size", "--input-px {}"),
    Foreign(
        "--imgsz --img-size --img --image-size --input-size --size", "The checkpoint holds the input size."
    ),
    Foreign("--num-workers -j", "--workers {}"),
    Foreign("--gpu --gpus --cuda", "--device cuda"),
    Foreign("--cpu", "--device cpu"),
    Foreign("--nproc --num-gpu --num-gpus --world-size", "--devices {}"),
    Foreign("--half --fp16 --amp-dtype --precision", "--amp fp16", "train"),
    Foreign("--half --fp16 --bf16 --amp-dtype --precision", "--amp bf16"),
    Foreign("--name --project --output --output-dir --save-dir --results-dir --results-file -o", "--out {}"),
    Foreign("--exist-ok --force -f -y", "--overwrite"),
    Foreign("--data-dir --data-path --train-dir", "--data {}"),
    Foreign("--arch --backbone -a", "--model {}"),
    Foreign("--initial-checkpoint --finetune", "--init {}"),
    Foreign("--checkpoint --ckpt --model-path --model -w", "--weights {}"),
    Foreign(
        "--source --input --data-dir --data --img-dir -i",
        "Images are named without an option: fgvc {command} {}.",
        "predict explain",
    ),
    Foreign("--conf --conf-thres --threshold", "--min-prob {}"),
    Foreign("--topk -k", "--top-k {}"),
    Foreign(
        "--format --save-txt --save-csv --out-format",
        "The ending of --out chooses the format: .csv, .jsonl, .h5 or .parquet.",
        "predict",
    ),
    Foreign("--format", "The ending of --out chooses the format: .onnx or .pt2.", "export"),
    Foreign("--recursive -r", "Folders are searched recursively.", "predict explain"),
    Foreign("--resume", "The same command again resumes.", "predict"),
    Foreign("--verbose -v", "Without --quiet it says all it has to say."),
)
"""Of timm's scripts, Ultralytics and others; the first that fits the command is offered."""


def _meant(error: Any, typed: Sequence[str]) -> str | None:
    """What to type for an option that another program has, or None."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    if command is None:
        return None
    option = getattr(error, "option_name", None)
    if option:
        near = list(getattr(error, "possibilities", None) or ())
        listed = f"Did you mean {' or '.join(near)}?" if near else None
        return _hint(option, _behind(option, typed), command) or listed
    if "unexpected extra argument" in error.format_message():
        for word in typed:
            name, equals, value = word.partition("=")
            if equals and name.isidentifier():
                return _hint(f"--{name}", value, command)
    return None


def _hint(option: str, value: str | None, command: Any) -> str | None:
    """For ``--lr`` and ``0.1``: ``Did you mean --set optim.lr_backbone=0.1?``"""
    has = {name for parameter in command.params for name in parameter.opts}
    name = option.replace("_", "-")
    if name in has:
        return f"Did you mean {f'{name} {value or str()}'.strip()}?"
    for row in FOREIGN:
        if name not in row.names.split() or command.name not in (row.commands.split() or [command.name]):
            continue
        here = row.here.replace("{command}", command.name).replace("{}", value or "VALUE")
        if row.here.endswith("."):
            return here
        if here.split()[0] in has:
            return f"Did you mean {here}?"
    return None


def _behind(option: str, typed: Sequence[str]) -> str | None:
    """The value that was typed with an option, or None."""
    for word, behind in zip(typed, [*typed[1:], "-"], strict=True):
        if word == option:
            return None if behind.startswith("-") else behind
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _value_of(option: Any, typed: Sequence[str]) -> str | None:
    """What was typed for an option; None where there is none, or it was an argument's."""
    for name in getattr(option, "opts", ()):
        for word, behind in zip(typed, [*typed[1:], None], strict=True):
            if word == name:
                return behind
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
    return None
