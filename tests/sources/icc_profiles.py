"""ICC profiles that the tests write: ICC.1:2001 (version 2) of three primaries or of grey, by the published
numbers of each space. Pillow itself can only make sRGB."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

PRIMARIES = {  # X, Y, Z of red, green and blue, adapted to D50, and the exponent; None: the curve of sRGB
    "sRGB": (((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)), None),
    "Display P3": (
        ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
        None,
    ),
    "Adobe RGB": (
        ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
        2.19921875,
    ),
    "ProPhoto": (((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)), 1.8),
}
WIDE = ("Display P3", "Adobe RGB", "ProPhoto")


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(exponent: float | None) -> bytes:
    if exponent is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256)) + b"\0\0"
    stored = np.linspace(0, 1, 1024)
    light = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + (light * 65535).round().astype(">u2").tobytes()


def _profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), **tags}
    place, table, bodies = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", place + len(bodies), len(body))
        bodies += body.ljust(-(-len(body) // 4) * 4, b"\0")
    header = struct.pack(">I4sI4s4s4s", place + len(bodies), b"none", 0x02100000, b"mntr", space, pcs)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def rgb_profile(name: str) -> bytes:
    primaries, exponent = PRIMARIES[name]
    tags = {bytes([letter]) + b"XYZ": _xyz(xyz) for letter, xyz in zip(b"rgb", primaries, strict=True)}
    return _profile(b"RGB ", tags | {bytes([letter]) + b"TRC": _curve(exponent) for letter in b"rgb"})


def grey_profile(exponent: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(exponent)})


INKS = {  # coverage by cyan, magenta, yellow, black -> L*, a*, b* on coated paper, as presses print them
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (55, -37, -50),
    (0, 1, 0, 0): (48, 74, -3),
    (0, 0, 1, 0): (89, -5, 93),
    (0, 0, 0, 1): (0, 0, 0),
}


def press_profile() -> bytes:
    """Of four inks: a table of 2 x 2 x 2 x 2 colours; mixtures of several full inks are nearly black."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    labs = [INKS.get(corner, (10, 0, 0)) for corner in corners]
    table = bytes(value for L, a, b in labs for value in (round(L * 2.55), a + 128, b + 128))
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    body = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + straight * 4 + table + straight * 3
    return _profile(b"CMYK", {b"A2B0": body}, b"Lab ")


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """The same colours in the values that a profile describes."""
    to = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), to, "RGB", "RGB", 1)
    return transform.apply(image)
