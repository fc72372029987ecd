"""The house: imports point one way, help answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
from conftest import save_trained, write_colours

PACKAGE = Path(__file__).parents[1] / "fgvc_cli"

LOW_TO_HIGH = (
    ("", "errors", "files", "store", "config", "command"),
    ("sources", "attention"),
    ("data",),
    ("datasets", "aviary"),
    ("models",),
    ("evaluate", "formats"),
    ("charts",),
    ("engine",),
    ("predict",),
    ("run", "retrieval"),
    ("explain",),
    ("report",),
    ("cli",),
)
"""Rooms of a level import no room of a higher one, nor each other."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(name: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                found.add(member if member in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {other for other in found if other in MODULES and other != name}


def room_of(module: str) -> str:
    return module.removeprefix("fgvc_cli").lstrip(".").split(".")[0]


LEVEL = {room: level for level, rooms in enumerate(LOW_TO_HIGH) for room in rooms}


def test_every_room_has_its_level():
    assert {room_of(name) for name in MODULES} - {"__main__"} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"fgvc_cli", "fgvc_cli.__main__"}))
def test_imports_point_one_way(name):
    room = room_of(name)
    upward = [
        other
        for other in imports_of(name)
        if (other_room := room_of(other)) != room and other_room and LEVEL[other_room] >= max(LEVEL[room], 1)
    ]
    assert not upward


def test_imports_make_no_circle():
    """Deferred imports count: a circle within a room means that its files are one subject."""
    below = {name: imports_of(name) - {"fgvc_cli"} for name in MODULES}
    while free := [name for name, needs in below.items() if not needs]:
        for name in free:
            del below[name]
        below = {name: needs.difference(free) for name, needs in below.items()}
    assert not below


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy():
    heavy = ("torch", "timm", "skimage", "h5py", "numpy", "pydantic", "fgvc_cli.config")
    code = f"""
import sys, contextlib, io
sys.argv = ["fgvc", "--help"]
from fgvc_cli.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print([module for module in {heavy} if module in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_help_answers_within_half_a_second_of_cpu():
    code = """
import time, sys, contextlib, io
sys.argv = ["fgvc", "--help"]
from fgvc_cli.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(time.process_time())
"""
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


def test_public_face_is_lazy_and_whole():
    loaded = "print('torch' in sys.modules)"
    code = f"import sys, fgvc_cli; {loaded}; fgvc_cli.create_model; {loaded}"
    assert run_python(code).split() == ["False", "True"]
    import fgvc_cli

    assert all(callable(getattr(fgvc_cli, name)) for name in fgvc_cli.__all__ if name != "__version__")
    with pytest.raises(AttributeError):
        fgvc_cli.nothing  # noqa: B018


def called_for(images: int, weights: Path, folder: Path) -> Counter[tuple[str, str]]:
    """(file, function) -> how often it is called while so many images are predicted one by one."""
    import fgvc_cli

    write_colours(folder / "photos", images, classes=("red",))
    calls: Counter[tuple[str, str]] = Counter()
    folder_of = f"{Path(fgvc_cli.__file__).parent}/"  # where it is installed, it is not that of the checkout

    def count(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder_of):
            calls[code.co_filename.removeprefix(folder_of), code.co_qualname] += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        fgvc_cli.predict_folder(
            folder / "photos",
            weights=weights,
            out=folder / "out.csv",
            batch_size=1,
            workers=0,
            amp="none",
            device="cpu",
            quiet=True,
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return calls


def test_one_image_passes_few_files_on_its_way_to_a_row(tmp_path):
    """Those of its decoder among them, which in a run is a process of its own."""
    weights = save_trained(
        tmp_path / "model.safetensors", write_colours(tmp_path / "data", 4), model="crasmra-resnet10t"
    )
    three, six = (called_for(images, weights, tmp_path / str(images)) for images in (3, 6))
    passed = {file for (file, function), times in six.items() if times >= three[file, function] + 3}
    assert {"sources/images.py", "predict/forward.py", "formats/csv_rows.py"} < passed
    assert len(passed) <= 20, sorted(passed)
