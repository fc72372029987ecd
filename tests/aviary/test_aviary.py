"""The Aviary: exact truth, one random stream per picture, species that differ in parts alone."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from fgvc_cli.aviary import dataset as aviary
from fgvc_cli.aviary.bird import LOOKS, TAIL_ENDS, locate_landmarks, sample_pose
from fgvc_cli.aviary.dataset import (
    PARTS,
    SPECIES,
    differing_parts,
    read_boxes,
    render_bird,
    slug,
    write_aviary,
)
from fgvc_cli.aviary.scene import HABITATS, draw_occluder
from fgvc_cli.errors import EXIT_ERROR, EXIT_USAGE, FgvcError

SIZE_PX = 96
ONE_PART_APART = [pair for pair in combinations(SPECIES, 2) if len(differing_parts(*pair)) == 1]


def render(species: aviary.Species, seed: int, size_px: int = SIZE_PX) -> aviary.Rendering:
    return render_bird(species, np.random.default_rng(seed), size_px)


def pixels(rendering: aviary.Rendering) -> NDArray[np.int16]:
    return np.asarray(rendering.image).astype(np.int16)


def tight_box(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(inside)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aviary") / "birds"
    assert write_aviary(out, species=3, train=2, val=0, test=1, size_px=SIZE_PX, seed=5) == 9
    return out


# ---------------------------------------------------------------- species


def test_species_are_twelve_of_known_looks_and_all_differ() -> None:
    assert len(SPECIES) == len({slug(species) for species in SPECIES}) == 12
    for species in SPECIES:
        assert all(getattr(species, part) in LOOKS[part] for part in PARTS)
    assert all(differing_parts(*pair) for pair in combinations(SPECIES, 2))


def test_every_part_is_all_that_tells_some_pair_apart() -> None:
    assert {differing_parts(*pair)[0] for pair in ONE_PART_APART} == set(PARTS)


@pytest.mark.parametrize("pair", ONE_PART_APART, ids=lambda pair: "-".join(differing_parts(*pair)))
def test_species_one_part_apart_differ_inside_that_part_alone(
    pair: tuple[aviary.Species, aviary.Species],
) -> None:
    (part,) = differing_parts(*pair)
    for seed in range(2):
        one, other = render(pair[0], seed), render(pair[1], seed)
        changed = (pixels(one) != pixels(other)).any(2)
        boxes = [one.parts[part], other.parts[part]]
        x1, y1 = (min(box[i] for box in boxes) - 2 for i in (0, 1))
        x2, y2 = (max(box[i] for box in boxes) + 2 for i in (2, 3))
        assert changed[max(0, y1) : y2, max(0, x1) : x2].sum() == changed.sum() > 3
        assert {p for p in PARTS if one.parts[p] != other.parts[p]} <= {part}


# ---------------------------------------------------------------- truth


@pytest.mark.parametrize("species", SPECIES, ids=slug)
def test_object_box_is_tight_around_the_mask_and_holds_every_part(species: aviary.Species) -> None:
    for seed in range(2):
        bird = render(species, seed)
        assert bird.image.size == bird.mask.shape == (SIZE_PX, SIZE_PX)
        assert bird.box == tight_box(bird.mask >= 64)
        assert tuple(bird.parts) == PARTS
        for x1, y1, x2, y2 in bird.parts.values():
            assert bird.box[0] <= x1 < x2 <= bird.box[2] and bird.box[1] <= y1 < y2 <= bird.box[3]


@pytest.mark.parametrize(
    ("part", "one", "other"),
    [
        ("bill", "stout orange cone", "long curved red bill"),
        ("crown", "black cap", "scarlet crest"),
        ("eye", "dark eye", "red eye ring"),
        ("wing_bar", "one blue bar", "two white bars"),
        ("tail", "square tail", "no tail"),
        ("breast", "plain breast", "rufous bib"),
    ],
)
def test_part_box_is_tight_around_what_is_painted(
    monkeypatch: pytest.MonkeyPatch, part: str, one: str, other: str
) -> None:
    """Repainting one part changes the picture right up to the edges of its two boxes."""
    monkeypatch.setattr(aviary, "draw_occluder", lambda *scene: None)
    monkeypatch.setitem(TAIL_ENDS, "no tail", (0.1, 0.1))  # ends under the body
    for seed in range(2):
        pair = [render(replace(SPECIES[0], **{part: look}), seed, 192) for look in (one, other)]
        boxes = np.array([bird.parts[part] for bird in pair if bird.parts[part] != (0, 0, 0, 0)])
        union = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        change = np.abs(pixels(pair[0]) - pixels(pair[1])).max(2)
        assert np.abs(union - tight_box(change > 24)).max() <= 1


def test_parts_lie_where_a_bird_has_them() -> None:
    """Eye by bill and crown, tail farthest from them; the head's parts above the breast."""
    for seed in range(6):
        boxes = render(SPECIES[0], seed).parts.items()
        middle = {part: np.array([(x1 + x2) / 2, (y1 + y2) / 2]) for part, (x1, y1, x2, y2) in boxes}
        away = {part: float(np.hypot(*(middle[part] - middle["eye"]))) for part in PARTS}
        assert max(away["bill"], away["crown"]) < min(away["wing_bar"], away["breast"])
        assert away["tail"] == max(away.values())
        assert max(middle[part][1] for part in ("bill", "crown", "eye")) < middle["breast"][1]


def test_birds_span_a_quarter_to_three_quarters_of_the_side_all_over_the_picture() -> None:
    boxes = np.array([render(SPECIES[i % 12], i).box for i in range(24)])
    spans = (boxes[:, 2:] - boxes[:, :2]).max(1) / SIZE_PX
    assert 0.25 <= spans.min() < 0.4 and 0.6 < spans.max() <= 0.75
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 / SIZE_PX
    assert (middles.min(0) < 0.4).all() and (middles.max(0) > 0.6).all()


def test_leaves_hide_some_birds_and_at_most_a_third_of_any_part() -> None:
    occluded = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pose = sample_pose(rng, SIZE_PX)
        canvas = np.zeros((SIZE_PX, SIZE_PX, 3), np.float32)
        landmarks = locate_landmarks(pose)
        draw_occluder(rng, canvas, HABITATS[seed % len(HABITATS)], pose, landmarks)
        columns, rows = landmarks.astype(int).transpose(2, 0, 1)
        hidden = (canvas.max(2) > 0.3)[rows, columns].mean(1)
        occluded += bool(hidden.any())
        assert hidden.max() < 0.4
    assert 8 < occluded < 32


# ---------------------------------------------------------------- determinism


def test_same_stream_same_picture_whatever_came_before() -> None:
    first = render(SPECIES[4], 1)
    render(SPECIES[7], 2, 64)
    again = render(SPECIES[4], 1)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.box, first.parts) == (again.box, again.parts)
    assert first.image.tobytes() != render(SPECIES[4], 2).image.tobytes()


def test_files_do_not_depend_on_the_other_counts(small: Path, tmp_path: Path) -> None:
    write_aviary(tmp_path / "other", species=2, train=1, val=1, test=1, size_px=SIZE_PX, seed=5)
    shared = [path for path in read_boxes(tmp_path / "other") if not path.startswith("val/")]
    assert len(shared) == 4
    for path in shared:
        assert (tmp_path / "other" / path).read_bytes() == (small / path).read_bytes()


def test_seed_changes_every_picture(small: Path, tmp_path: Path) -> None:
    write_aviary(tmp_path / "other", species=2, train=1, val=0, test=0, size_px=SIZE_PX, seed=6)
    for path in read_boxes(tmp_path / "other"):
        assert (tmp_path / "other" / path).read_bytes() != (small / path).read_bytes()


# ---------------------------------------------------------------- files


def test_tree_and_boxes_come_back_as_rendered(small: Path) -> None:
    truths = read_boxes(small)
    assert sorted(truths) == sorted(path.relative_to(small).as_posix() for path in small.rglob("*.jpg"))
    assert sorted(entry.name for entry in small.iterdir()) == ["boxes.csv", "classes.csv", "test", "train"]
    name = "copper-capped-linnet"
    truth = truths[f"train/{name}/{name}_0001.jpg"]
    expected = render_bird(SPECIES[0], np.random.default_rng([5, 0, 0, 1]), SIZE_PX)
    assert (truth.split, truth.label) == ("train", name)
    assert (truth.box, truth.parts) == (expected.box, expected.parts)
    with Image.open(small / f"train/{name}/{name}_0001.jpg") as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (SIZE_PX, SIZE_PX), "RGB")
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4: an eye ring is a few pixels of colour
        difference = np.abs(np.asarray(image).astype(np.int16) - pixels(expected))
    assert difference.mean() < 4  # what JPEG costs, no other picture


def test_classes_csv_tells_the_parts_in_words(small: Path) -> None:
    with (small / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [slug(species) for species in SPECIES[:3]]
    assert rows[1]["crown"] == "black cap" and rows[2]["breast"] == "spotted breast"


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = tmp_path / "new" / "birds"
    write_aviary(
        out, species=2, train=1, val=1, test=0, size_px=64, on_progress=lambda *call: calls.append(call)
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert write_aviary(tmp_path, species=2, train=1, val=0, test=0, size_px=64) == 2
    assert (tmp_path / "boxes.csv").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for place in (out, out / "mine.txt"):
        with pytest.raises(FgvcError, match="new or empty folder") as caught:
            write_aviary(place, species=2, train=1, val=0, test=0, size_px=64)
        assert caught.value.exit_code == EXIT_ERROR and f"{place.name}-new" in str(caught.value)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "photos",
        "photos/mine.txt",
    ]
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    made: list[Path] = []

    def fail_at_third(species: aviary.Species, rng: np.random.Generator, size_px: int) -> aviary.Rendering:
        if sum(1 for _ in tmp_path.rglob("*.jpg")) == 2:
            made.extend(tmp_path.rglob("*.jpg"))
            raise failure
        return render_bird(species, rng, size_px)

    monkeypatch.setattr(aviary, "render_bird", fail_at_third)
    with pytest.raises(failure):
        write_aviary(tmp_path / "birds", species=2, train=2, val=0, test=0, size_px=64)
    assert len(made) == 2 and list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FgvcError, match="could not be written"):
        write_aviary(tmp_path / "file" / "birds", species=2, train=1, val=0, test=0, size_px=64)


@pytest.mark.parametrize(
    "numbers",
    [
        {"species": 1},
        {"species": 13},
        {"train": -1},
        {"train": 0, "val": 0, "test": 0},
        {"size_px": 63},
        {"size_px": 4096},
        {"seed": -1},
        {"val": 2.5},
        {"test": True},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_usage_errors(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(FgvcError, match="expected a whole number") as caught:
        write_aviary(tmp_path / "birds", **numbers)  # type: ignore[arg-type]
    assert caught.value.exit_code == EXIT_USAGE
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- reading what is not an Aviary


def test_missing_boxes_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(FgvcError, match=r"holds no boxes\.csv"):
        read_boxes(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path,split", "image,split", "starts with"),
        (",train,", ",", "line 2"),
        (",train,copper-capped-linnet,", ",train,copper-capped-linnet,x", "line 2"),
        (",train,copper-capped-linnet,", ",train,copper-capped-linnet,9", "line 2"),
        ("path,", "\xff\xfe\x00path,", "starts with"),
    ],
    ids=["header", "short row", "not a number", "empty box", "noise"],
)
def test_malformed_boxes_are_user_errors(
    small: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (small / "boxes.csv").read_text(encoding="utf-8")
    (tmp_path / "boxes.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(FgvcError, match=message):
        read_boxes(tmp_path)


def test_bytes_that_are_no_text_are_a_user_error(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe\x00\x01"):
        (tmp_path / "boxes.csv").write_bytes(content)
        with pytest.raises(FgvcError, match="could not be read"):
            read_boxes(tmp_path)
