"""Real hostile files (shared/data/README.md); skipped where they are absent."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.data.images import DecodedImage, Failure, read_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(shared):
    files = sorted(path for path in (shared / "data/hostile/go-fuzz-corpus").rglob("*") if path.is_file())
    assert len(files) > 1000
    return files


def decodes(path: Path) -> bool:
    """What Pillow itself says, to hold ``read_image`` against."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_every_file_is_an_rgb_image_or_a_failure_and_no_readable_one_is_lost(corpus):
    results = {path: read_image(path) for path in corpus}
    for path, result in results.items():
        if isinstance(result, Failure):
            assert result.error.isprintable(), path
        else:
            assert result.image.mode == "RGB", path
    read = {path for path, result in results.items() if isinstance(result, DecodedImage)}
    assert read == {path for path in corpus if decodes(path)}
    words = {result.status for result in results.values() if isinstance(result, Failure)}
    assert words == {"empty", "not_an_image", "truncated", "too_large", "unreadable"}


def test_nothing_reaches_stdout_or_stderr(corpus):
    """In a fresh process, as libtiff writes past Python and pytest holds warnings back."""
    script = (
        "import sys; from pathlib import Path; from fgvc_cli.data.images import read_image\n"
        "for line in sys.stdin: read_image(Path(line.rstrip('\\n')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(map(str, corpus)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_all_exif_orientations_come_out_upright_and_alike(shared, name):
    folder = shared / "data/hostile/exif-orientation"
    reference = read_image(folder / f"{name}_1.jpg").image
    assert (reference.width > reference.height) == (name == "Landscape")
    for orientation in range(9):
        image = read_image(folder / f"{name}_{orientation}.jpg").image
        assert image.size == reference.size
        # Each file was compressed on its own, so alike means in the small.
        small = [np.asarray(i.resize((32, 32)), np.int16) for i in (image, reference)]
        assert np.abs(small[0] - small[1]).mean() < 4, orientation
