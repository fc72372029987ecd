"""One decoder: image -> the model's input, and later the object's crop, in bounded memory.

It runs in a thread, or in a process of its own (``decode_process``), which is why there is no torch here.
Legend: S side of the model's input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from fgvc_cli.data.geometry import cut_input, resized_size
from fgvc_cli.predict.crops import cut_crop
from fgvc_cli.sources.images import DecodedImage, Failure, read_image
from fgvc_cli.sources.stored import Stored

Where = Path | Stored
"""What ``Found.path`` may be."""

Read = Callable[[Any], DecodedImage | Failure]
"""Path -> image, or why there is none."""

BIG_PIXELS = 32_000_000
"""Images above this take turns: 200 megapixels are 0.8 GB decoded, twice that while turned upright."""

TURNS = 2
"""How many of them are decoded at once in a whole run."""


class Rule(NamedTuple):
    """A ``ResizeRule`` that a worker understands without pydantic, whose import would double its start."""

    input_px: int
    resize_px: int
    resize_rule: Literal["squash", "shorter"]
    color_profile: Literal["srgb", "ignore"] = "srgb"
    raw: Literal["preview", "develop"] = "preview"


class Decoded(NamedTuple):
    """What became of one image."""

    failure: Failure | None
    width: int = 0
    """Of the upright image, pixels."""
    height: int = 0
    pixels: np.ndarray | None = None
    """uint8 (S, S, 3)."""
    note: str = ""
    """See ``DecodedImage.note``."""


class Turn(Protocol):
    """Held while a big image is in memory."""

    def acquire(self) -> object: ...
    def release(self) -> object: ...


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What every decoder of a run is told."""

    rule: Rule
    fast: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that is still at least the resized size."""
    keep_bytes: int = 0
    """Images kept for their crops, per decoder; those beyond it are read again."""


class Decoder:
    """Decodes one image at a time; whoever uses it calls it from one thread.

    Args:
        read: instead of ``read_image``; ``fast`` and turns are then its own business.
        turn: taken for each image above ``BIG_PIXELS``.
    """

    def __init__(self, settings: DecodeSettings, *, read: Read | None = None, turn: Turn | None = None):
        self._settings = settings
        self._read = read
        self._turn = turn
        self._holds_turn = False
        self._kept: dict[int, DecodedImage] = {}
        self._kept_bytes = 0

    def load(self, number: int, path: Where) -> Decoded:
        """Read and resize; with ``keep_bytes`` the image stays for ``cut`` while there is room."""
        with self._turns():
            photo = self._open(path)
            if isinstance(photo, Failure):
                return Decoded(photo)
            try:
                pixels = np.asarray(cut_input(photo.image, self._settings.rule, photo.full_size))
            except (MemoryError, OSError, ValueError) as error:
                reason = str(error) or "out of memory"
                return Decoded(Failure("unreadable", f"cannot be resized: {reason}"))
            self._keep(number, photo)
            return Decoded(None, *photo.size, pixels, photo.note)

    def cut(self, number: int, path: Where | None, box: Sequence[float] | None) -> bytes | None:
        """The crop of an image that ``load`` has seen, as JPEG, and the end of its being kept.

        Empty for no box, and for a file that can no longer be read; None without a path for an image
        that was not kept.
        """
        kept = self._kept.pop(number, None)
        if kept:
            self._kept_bytes -= _bytes(kept.image)
        if box is None:
            return b""
        if not kept and path is None:
            return None
        with self._turns():
            photo = kept or self._open(path)  # type: ignore[arg-type]
            try:
                return b"" if isinstance(photo, Failure) else cut_crop(photo.image, box, photo.full_size)
            except (MemoryError, OSError, ValueError):
                return b""

    def close(self) -> None:
        """Let go of everything."""
        self._kept.clear()

    def _open(self, path: Where) -> DecodedImage | Failure:
        return self._read(path) if self._read else read_image(path, self._prepare, self._settings.rule)

    def _prepare(self, image: Image.Image) -> None:
        if self._settings.fast:
            # No mode: the colours stay what they are.
            image.draft(None, resized_size(image.width, image.height, self._settings.rule))
        if self._turn and image.width * image.height > BIG_PIXELS:
            self._turn.acquire()
            self._holds_turn = True

    @contextlib.contextmanager
    def _turns(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._holds_turn and self._turn:
                self._holds_turn = False
                self._turn.release()

    def _keep(self, number: int, photo: DecodedImage) -> None:
        size = _bytes(photo.image)
        if self._kept_bytes + size <= self._settings.keep_bytes:
            self._kept[number] = photo
            self._kept_bytes += size


def _bytes(image: Image.Image) -> int:
    """Of the pixels; Pillow stores RGB in four bytes."""
    return 4 * image.width * image.height
