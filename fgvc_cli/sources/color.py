"""Colour profiles (ICC): the values of an image -> the same colours in sRGB, by LittleCMS. No torch."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageChops, ImageCms

MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored; those of presses take 0.5 to 3 MB, those of cameras and screens a few kB."""

SAME_WITHIN = 2
"""Levels of 255: a profile that moves no colour of a grid by more is sRGB, and there are many editions."""

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
"""What lies in sRGB keeps its exact colour and what does not is clipped; perceptual rendering would move all
colours of a profile with tables, and the profiles of cameras and screens know no other than this one."""
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
"""The darkest ink of a press becomes black rather than grey; nothing changes where black is black."""

IGNORED = "has a colour profile that cannot be used, and is read as sRGB"

_MODES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}
"""Colour space of a profile -> the modes whose values it can describe."""


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The colours of an image as its profile means them, in sRGB.

    Args:
        image: RGB, RGBA, L or CMYK; perhaps changed in place. One of three colours that are all grey may have
            a profile of grey: that is how images of grey and alpha, of two levels or of a palette come here.
        profile: ICC, any bytes at all.

    Returns:
        The image in RGB, RGBA or L, as it came where the profile is sRGB or cannot be used; and a note for
        people in the second case, empty else.
    """
    try:
        if len(profile) > MAX_PROFILE_BYTES:
            return image, IGNORED
        # Browsers too read a grey image with a profile of three colours as one of these.
        if image.mode == "L" and _space(profile) == "RGB ":
            image = image.convert("RGB")
        if image.mode in ("RGB", "RGBA") and _space(profile) == "GRAY":
            return _grey_to_srgb(image, profile), ""
        transform = _transform(profile, image.mode)
        if transform is None:
            return image, ""
        if image.mode in ("RGB", "RGBA") and not image.readonly:
            transform.apply_in_place(image)  # a copy of a large image is as large again
            return image, ""
        return transform.apply(image), ""
    # Profiles are as hostile as images: any exception, and the pixels are good without it.
    except Exception:
        return image, IGNORED


def _grey_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of three equal colours, and perhaps alpha, by a profile of grey.

    Raises:
        ValueError: it has colours.
    """
    red, green, blue, *alpha = image.split()
    if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
        raise ValueError("a profile of grey on an image of colours")
    transform = _transform(profile, "L")
    if transform is None:
        return image
    grey = transform.apply(red)
    if alpha:
        grey.putalpha(alpha[0])
    return grey


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


@functools.lru_cache(maxsize=32)
def _space(profile: bytes) -> str:
    return str(_open(profile).profile.xcolor_space)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where that changes nothing to speak of.

    Raises:
        Exception: a profile that is damaged or describes other colours than ``mode``.
    """
    space = _space(profile)
    if mode not in _MODES.get(space, ()):
        raise ValueError(f"a profile of {space} on an image of {mode}")
    target = "RGB" if mode == "CMYK" else mode
    end = ImageCms.createProfile("sRGB")
    # Grey comes out of RGB, which LittleCMS would otherwise need a profile of grey for.
    out = "RGB" if mode == "L" else target
    transform = ImageCms.buildTransform(_open(profile), end, mode, out, INTENT, FLAGS)
    if mode == "CMYK":
        return transform
    grid = _grid(mode)
    before = grid.convert("RGB").tobytes()
    after = transform.apply(grid).convert("RGB").tobytes()
    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return None if moved <= SAME_WITHIN else transform


def _grid(mode: str) -> Image.Image:
    """All greys, or 9 x 9 x 9 colours."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = [min(32 * i, 255) for i in range(9)]
    colours = bytes(value for r in steps for g in steps for b in steps for value in (r, g, b))
    return Image.frombytes("RGB", (729, 1), colours).convert(mode)
