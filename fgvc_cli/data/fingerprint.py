"""What an image looks like, in few bytes: enough to find its copies among many.

A copy that was scaled, compressed again or stored in another format keeps its perceptual hash but for a few
bits. What the hash cannot tell, colour and smooth surfaces, the thumbnail can. Mirrored, turned and cropped
copies are not found.

Zauner: Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 (3.2.1, the DCT hash).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn

from fgvc_cli.data.images import Failure, read_image

HASH_BITS = 64
_SIDE_PX = 32
_THUMB_PX = 8
_DRAFT_PX = 128
"""A JPEG is decoded at the smallest of its built-in scales that is not below this."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One image."""

    digest: bytes
    """Of the file's bytes, 16 of them: equal for equal files."""
    bits: int
    """The perceptual hash, 64 bits."""
    thumb: bytes
    """RGB, 8 x 8 pixels, row by row."""


def fingerprint(path: Path) -> Fingerprint | Failure:
    """Read a file; one that cannot be read is a value, as in ``read_image``."""
    photo = read_image(path, _smaller)
    if isinstance(photo, Failure):
        return photo
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        return Failure("unreadable", str(error))
    # Boxes: every pixel counts, whatever the size, so that copies of other sizes come out alike.
    side = photo.image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    thumb = side.resize((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX)
    return Fingerprint(digest, perceptual_hash(np.asarray(side.convert("L"), np.float32)), thumb.tobytes())


def perceptual_hash(grey: np.ndarray) -> int:
    """Grey values (32, 32) -> 64 bits: which of the 8 x 8 lowest frequencies lie above their median."""
    lowest = dctn(grey, norm="ortho")[:8, :8].ravel()
    above = lowest > np.median(lowest[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def _smaller(image: Image.Image) -> None:
    image.draft("RGB", (_DRAFT_PX, _DRAFT_PX))
