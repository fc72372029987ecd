"""The Aviary: rendered birds whose species differ only in local parts, with exact ground truth.

Twelve species share one body, one pose, one range of body colours, light and surroundings; they differ in
bill, crown, eye, wing bar, tail and breast, several pairs in exactly one of these. A model that tells them
apart has looked at the parts, and where it looked can be scored: every picture knows the box of its bird
and of each part, measured on the coverage that was painted.

The tree that ``write_aviary`` makes::

    OUT/train/copper-capped-linnet/copper-capped-linnet_0000.jpg   also val/ and test/
    OUT/boxes.csv     path,split,label,x1,y1,x2,y2,bill_x1,...     pixels, xyxy, end-exclusive
    OUT/classes.csv   label,name,bill,crown,eye,wing_bar,tail,breast   the parts in words
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_cli.aviary.bird import (
    PARTS,
    Plane,
    Species,
    bounds,
    draw_bird,
    locate_landmarks,
    sample_look,
    sample_pose,
)
from fgvc_cli.aviary.scene import HABITATS, draw_backdrop, draw_occluder, draw_perch, light_scene
from fgvc_cli.errors import EXIT_USAGE, FgvcError

__all__ = [
    "PARTS", "SPECIES", "SPLITS", "Rendering", "Species", "Truth",
    "differing_parts", "read_boxes", "render_bird", "slug", "write_aviary",
]  # fmt: skip

PixelBox = tuple[int, int, int, int]

SPLITS: tuple[str, ...] = ("train", "val", "test")
SIZES_PX = (64, 2048)  # below, an eye covers no whole pixel
_COVERED = 0.25  # a pixel belongs to a box when at least this share of it is painted

# fmt: off
SPECIES: tuple[Species, ...] = (  # in threes: one species, and two that each differ from it in one part
    Species("Copper-capped Linnet", "stout orange cone", "copper cap", "dark eye", "one white bar",
            "square tail", "plain breast"),
    Species("Black-capped Linnet", "stout orange cone", "black cap", "dark eye", "one white bar",
            "square tail", "plain breast"),
    Species("Spotted Linnet", "stout orange cone", "copper cap", "dark eye", "one white bar",
            "square tail", "spotted breast"),
    Species("Spectacled Willowlark", "fine black needle", "plain crown", "white eye ring", "two white bars",
            "forked tail", "plain breast"),
    Species("Goldwing Willowlark", "fine black needle", "plain crown", "white eye ring", "one gold bar",
            "forked tail", "plain breast"),
    Species("Crested Willowlark", "fine black needle", "scarlet crest", "white eye ring", "two white bars",
            "forked tail", "plain breast"),
    Species("Rufous-bibbed Pirrit", "hooked yellow bill", "black cap", "dark eye", "one blue bar",
            "white-tipped tail", "rufous bib"),
    Species("Collared Pirrit", "hooked yellow bill", "black cap", "dark eye", "one blue bar",
            "white-tipped tail", "black breast band"),
    Species("Ember-eyed Pirrit", "hooked yellow bill", "black cap", "red eye ring", "one blue bar",
            "white-tipped tail", "rufous bib"),
    Species("Sicklebill Merrow", "long curved red bill", "white brow", "red eye ring", "one gold bar",
            "long pointed tail", "spotted breast"),
    Species("Slate-billed Merrow", "stout slate cone", "white brow", "red eye ring", "one gold bar",
            "long pointed tail", "spotted breast"),
    Species("Square-tailed Merrow", "long curved red bill", "white brow", "red eye ring", "one gold bar",
            "square tail", "spotted breast"),
)
# fmt: on


def slug(species: Species) -> str:
    """The folder name, and label, of a species: ``copper-capped-linnet``."""
    return species.name.lower().replace(" ", "-")


def differing_parts(one: Species, other: Species) -> list[str]:
    """Those of ``PARTS`` in which two species differ."""
    return [part for part in PARTS if getattr(one, part) != getattr(other, part)]


@dataclass(frozen=True, eq=False)
class Rendering:
    """One picture and what is known about it; boxes are xyxy pixels of ``image``, end-exclusive.

    Attributes:
        image: RGB, ``size_px`` square.
        box: the whole bird, also where a leaf hides it.
        parts: a box for each of ``PARTS``, also where a leaf hides it.
        mask: (size_px, size_px) uint8, how much of each pixel the bird covers, 255 for all; ``box`` is
            tight around the pixels of at least a quarter.
        species: whose parts were painted.
    """

    image: Image.Image
    box: PixelBox
    parts: dict[str, PixelBox]
    mask: NDArray[np.uint8]
    species: Species


@dataclass(frozen=True)
class Truth:
    """A row of boxes.csv; boxes are xyxy pixels, end-exclusive."""

    split: str
    label: str
    box: PixelBox
    parts: dict[str, PixelBox]


def render_bird(species: Species, rng: np.random.Generator, size_px: int = 256) -> Rendering:
    """Paint one bird of ``species``; everything but its parts is drawn from ``rng``.

    Two species rendered from equal generators give pictures that differ only in their differing parts.

    Raises:
        FgvcError: ``size_px`` is out of range.
    """
    _check_number("size_px", size_px, *SIZES_PX)
    pose, look = sample_pose(rng, size_px), sample_look(rng)
    habitat = HABITATS[int(rng.integers(len(HABITATS)))]
    canvas = draw_backdrop(rng, habitat, size_px)
    draw_perch(rng, canvas, habitat, pose, look.light)
    painter = draw_bird(canvas, species, pose, look)
    draw_occluder(rng, canvas, habitat, pose, locate_landmarks(pose))
    canvas = light_scene(rng, canvas)
    return Rendering(
        image=Image.fromarray(_to_bytes(canvas)),
        box=_box_of(painter.bird),
        parts={part: _box_of(painter.parts[part]) for part in PARTS},
        mask=_to_bytes(painter.bird),
        species=species,
    )


def _to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (255 * np.clip(values, 0, 1) + 0.5).astype(np.uint8)


def _box_of(alpha: Plane) -> PixelBox:
    rows, cols = bounds(alpha, _COVERED)
    return cols.start, rows.start, cols.stop, rows.stop


# ---------------------------------------------------------------- writing


def write_aviary(
    out: Path,
    *,
    species: int = 12,
    train: int = 40,
    val: int = 10,
    test: int = 20,
    size_px: int = 256,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the tree described above: the first ``species`` of ``SPECIES``, so many pictures per class.

    ``out`` appears whole or not at all: it is written beside its place and renamed. A picture depends on
    (seed, species, split, index, size_px) alone, not on the other counts.

    Args:
        out: a folder that does not exist or is empty.
        species: 2 to 12.
        train, val, test: pictures per class in each split; a split of none has no folder.
        size_px: side of the pictures, 64 to 2048.
        seed: any whole number from 0.
        on_progress: called after each picture with (done, total).

    Returns:
        The number of pictures.

    Raises:
        FgvcError: ``out`` is in use or cannot be written, or a number is out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    _check_number("species", species, 2, len(SPECIES))
    for split, count in counts.items():
        _check_number(split, count, 0, 9999)
    _check_number("train + val + test", sum(counts.values()), 1, 3 * 9999)
    _check_number("size_px", size_px, *SIZES_PX)
    _check_number("seed", seed, 0, 2**63 - 1)
    total, out = species * sum(counts.values()), out.resolve()
    try:
        _check_unused(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            root = Path(folder) / out.name  # one level down: mkdtemp's own folder is closed to other users
            rows: list[list[str | int]] = []
            for row in _write_pictures(root, species, counts, size_px, seed):
                rows.append(row)
                if on_progress is not None:
                    on_progress(len(rows), total)
            _write_csv(root / "boxes.csv", [_BOX_COLUMNS, *rows])
            words = [[slug(s), s.name, *(getattr(s, part) for part in PARTS)] for s in SPECIES[:species]]
            _write_csv(root / "classes.csv", [["label", "name", *PARTS], *words])
            if out.exists():
                out.rmdir()
            root.rename(out)
    except OSError as error:
        raise FgvcError(
            f"{out} could not be written ({error.strerror or error}); expected room and leave to write.",
            "Free some space or name another folder.",
        ) from error
    return total


_BOX_COLUMNS = ["path", "split", "label", "x1", "y1", "x2", "y2"]
_BOX_COLUMNS += [f"{part}_{corner}" for part in PARTS for corner in ("x1", "y1", "x2", "y2")]


def _write_pictures(
    root: Path, species: int, counts: dict[str, int], size_px: int, seed: int
) -> Iterator[list[str | int]]:
    """Write every picture below ``root`` and yield its row of boxes.csv."""
    for split_index, split in enumerate(SPLITS):
        for species_index in range(species if counts[split] else 0):
            kind = SPECIES[species_index]
            label = slug(kind)
            (root / split / label).mkdir(parents=True)
            for index in range(counts[split]):
                rng = np.random.default_rng([seed, species_index, split_index, index])
                picture = render_bird(kind, rng, size_px)
                path = f"{split}/{label}/{label}_{index:04d}.jpg"
                picture.image.save(root / path, quality=92, subsampling=0)
                boxes = [picture.box, *(picture.parts[part] for part in PARTS)]
                yield [path, split, label, *(value for box in boxes for value in box)]


def _check_unused(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    found = "a folder that is not empty" if out.is_dir() else "a file"
    raise FgvcError(
        f"{out} is {found}; the Aviary is written into a new or empty folder.",
        f"Name another, for example {out.parent / (out.name + '-new')}.",
    )


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FgvcError(
            f"{name} is {value!r}; expected a whole number from {low} to {high}.",
            f"Give {name} a number in that range.",
            EXIT_USAGE,
        )


# ---------------------------------------------------------------- reading


def read_boxes(root: Path) -> dict[str, Truth]:
    """The ground truth of an Aviary by path, relative to ``root`` and POSIX, in the order of boxes.csv.

    Raises:
        FgvcError: boxes.csv is missing or is not what ``write_aviary`` writes.
    """
    path = root / "boxes.csv"
    again = "Name the folder that write_aviary made, or write it anew into a new folder."
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        raise FgvcError(f"{root} holds no boxes.csv; expected the folder of an Aviary.", again) from None
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        problem = f"{path} could not be read ({error}); expected the boxes of an Aviary."
        raise FgvcError(problem, again) from error
    if header != _BOX_COLUMNS:
        raise FgvcError(
            f"{path} starts with {','.join(header)[:80]!r}; "
            f"expected {','.join(_BOX_COLUMNS[:7])!r} and the corners of the parts.",
            again,
        )
    truths: dict[str, Truth] = {}
    for line, row in enumerate(rows, start=2):
        try:
            corners = [int(value) for value in row[3:]]
            boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in np.reshape(corners, (1 + len(PARTS), 4)).tolist()]
        except ValueError:
            boxes = []
        if not boxes or any(x1 < 0 or y1 < 0 or x1 >= x2 or y1 >= y2 for x1, y1, x2, y2 in boxes):
            raise FgvcError(
                f"{path} line {line} is {','.join(row)[:80]!r}; "
                f"expected a path, a split, a label and {1 + len(PARTS)} boxes x1,y1,x2,y2 in whole pixels.",
                again,
            )
        truths[row[0]] = Truth(row[1], row[2], boxes[0], dict(zip(PARTS, boxes[1:], strict=True)))
    return truths
