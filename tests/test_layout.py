"""The house: imports point one way, help answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fgvc_cli"

FORBIDDEN = {
    "data": {"nearest", "models", "engine", "predict", "explain", "report", "commands", "attention"},
    "attention": {"nearest", "models", "engine", "predict", "explain", "report", "commands", "data"},
    "models": {"nearest", "engine", "predict", "explain", "report", "commands", "data"},
    "engine": {"nearest", "predict", "explain", "report", "commands"},
    "predict": {"nearest", "explain", "report", "commands"},
    "nearest": {"explain", "report", "commands"},
    "explain": {"commands", "report"},
    "report": {"models", "engine", "nearest", "commands"},
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("fgvc_cli.")}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room):
    files = list((PACKAGE / room).glob("*.py"))
    assert files
    wrong = {f.name: imported_rooms(f) & FORBIDDEN[room] for f in files}
    assert not {name: rooms for name, rooms in wrong.items() if rooms}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_command_line_imports_nothing_heavy():
    heavy = ("torch", "timm", "skimage", "h5py", "numpy")
    code = f"import sys, fgvc_cli.cli; print([m for m in {heavy} if m in sys.modules])"
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
    code = f"import sys, fgvc_cli; {loaded}; fgvc_cli.Predictor; {loaded}"
    assert run_python(code).split() == ["False", "True"]
    import fgvc_cli

    assert all(callable(getattr(fgvc_cli, name)) for name in fgvc_cli.__all__ if name != "__version__")
    with pytest.raises(AttributeError):
        fgvc_cli.nothing  # noqa: B018


def test_files_and_functions_stay_readable():
    too_long = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > 350:
            too_long[path.name] = len(text.splitlines())
    assert not too_long
