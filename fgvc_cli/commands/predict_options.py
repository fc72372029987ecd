"""What ``fgvc predict`` was asked to do, in one picklable piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.outputs import FLAGS, Outputs

if TYPE_CHECKING:
    from fgvc_cli.formats.rows import Extra
    from fgvc_cli.run.run_files import ShardOf
    from fgvc_cli.sources.frames import FrameChoice


BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The options of ``fgvc predict``, named as on the command line; its help says what they mean."""

    sources: Sequence[str]
    weights: str | None = None
    out: Sequence[Path] = ()
    top_k: int = 5
    batch_size: int | Literal["auto"] | None = None
    """None: what the run was begun with, else ``BATCH_SIZE``."""
    workers: int = 2
    device: str = "auto"
    devices: int | None = None
    shard: str | None = None
    stages: str | None = None
    cascade: float | None = None
    maps: bool = False
    crops: bool = False
    embeddings: bool = False
    logits: bool = False
    crops_dir: Path | None = None
    maps_dir: Path | None = None
    min_prob: float | None = None
    amp: str = "auto"
    compile: bool = False
    fast_decode: bool = False
    overwrite: bool = False
    restart: bool = False
    retry_failed: bool = False
    null: bool = False
    all_files: bool = False
    nested: bool = False
    raw: str | None = None
    frames: str | None = None
    every: str | None = None
    per_file: Path | None = None
    quiet: bool = False

    @property
    def outputs(self) -> Outputs:
        """Where the rows go; only with ``out``."""
        asked = {"attention": self.maps, "crop": self.crops}
        asked |= {"embedding": self.embeddings, "logits": self.logits}
        extras: frozenset[Extra] = frozenset(extra for extra in FLAGS if asked[extra])
        return Outputs(tuple(self.out), extras, self.crops_dir, self.maps_dir, self.per_file)

    @property
    def frame_choice(self) -> FrameChoice | None:
        """What ``frames`` and ``every`` come to.

        Raises:
            FgvcError: a usage error.
        """
        from fgvc_cli.sources.frames import parse_frames

        return parse_frames(self.frames, self.every)

    def check(self) -> None:
        """Options that exclude each other, before anything is opened.

        Raises:
            FgvcError: a usage error.
        """
        if not self.out:
            files = ["shard", "devices", "restart", "retry_failed", "crops_dir", "maps_dir", "per_file"]
            for name in [*files, "maps", "crops", "embeddings", "logits"]:
                if getattr(self, name) not in (None, False):
                    message = f"--{name.replace('_', '-')} needs an output file."
                    raise FgvcError(message, "Add --out FILE.h5", EXIT_USAGE)
        if self.raw not in (None, "preview", "develop"):
            message = f"--raw got {self.raw!r}, expected preview or develop."
            raise FgvcError(message, None, EXIT_USAGE)
        _ = self.frame_choice
        pieces = "--devices" if self.devices else "--shard" if self.shard else None
        if self.devices and self.shard:
            raise FgvcError("--devices splits the work itself.", "Leave --shard away.", EXIT_USAGE)
        if self.retry_failed and pieces:
            raise FgvcError("--retry-failed works in one piece.", f"Leave {pieces} away.", EXIT_USAGE)
        if self.retry_failed and self.restart:
            raise FgvcError("--restart discards what --retry-failed mends.", "Choose one.", EXIT_USAGE)
        if self.devices and "-" in self.sources:
            message = "--devices cannot share the list on stdin among its processes."
            raise FgvcError(message, "Write the list to a file: fgvc predict @list.txt", EXIT_USAGE)


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """``auto`` or a number of photographs.

    Raises:
        FgvcError: anything else.
    """
    if text == "auto":
        return "auto"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise FgvcError(f"--batch-size got {text!r}, expected a number from 1 or auto.", None, EXIT_USAGE)


def launched_shard(environment: Mapping[str, str]) -> str | None:
    """The shard that a launcher like torchrun gives this process, as ``i/n``; None without one.

    Raises:
        FgvcError: a world without a rank.
    """
    count = environment.get("WORLD_SIZE", "1")
    if not count.isdecimal() or int(count) < 2:
        return None
    if "RANK" not in environment:
        message = f"WORLD_SIZE is {count}, but RANK is not set."
        raise FgvcError(message, "torchrun sets both; or unset WORLD_SIZE.", EXIT_USAGE)
    return f"{environment['RANK']}/{count}"


def pick_shard(options: PredictOptions, environment: Mapping[str, str]) -> ShardOf:
    """Which rows this process predicts: ``--shard``, else the launcher's, else all.

    Raises:
        FgvcError: not i/n; a launcher beside --devices, --retry-failed or without --out.
    """
    from fgvc_cli.run.run_files import ShardOf, parse_shard

    launched = launched_shard(environment)
    if launched and not options.shard:
        for name, used in (("--devices", options.devices), ("--retry-failed", options.retry_failed)):
            if used:
                raise FgvcError(f"{name} is not for torchrun.", "Start fgvc predict itself.", EXIT_USAGE)
        if not options.out:
            raise FgvcError("Under torchrun rows go to a file.", "Add --out FILE", EXIT_USAGE)
    text = options.shard or launched
    return parse_shard(text) if text else ShardOf()
