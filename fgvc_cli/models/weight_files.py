"""Reading weight files. Pickle is never loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgvc_cli.errors import FgvcError

CHECKPOINT_KEY = "fgvc"
"""Where the JSON of an fgvc checkpoint stands in the metadata of its file."""

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_weight_file(path: Path) -> None:
    """Refuse what is not a safetensors file.

    Raises:
        FgvcError: no such file, a folder, a pickle (names the conversion command), an empty file.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FgvcError(
            f"Weights {str(path)!r}: {what}.", "Expected a model.safetensors written by fgvc train."
        )
    with path.open("rb") as stream:
        start = stream.read(4)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl") or start.startswith(_PICKLE_STARTS):
        target = path.with_suffix(".safetensors").name
        raise FgvcError(
            f"{path.name} is a pickle, which can run code when it is read; fgvc reads safetensors only.",
            'For --init, convert it: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{path.name}', map_location='cpu', weights_only=True); "
            f"save_file(w.get('state_dict', w), '{target}')\"",
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a safetensors file, on the CPU, and its metadata.

    Raises:
        FgvcError: as ``check_weight_file``, or a file that is damaged.
    """
    check_weight_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FgvcError(
            f"{path.name} is not a readable safetensors file ({error}).",
            "It may be cut short: copy or train it again.",
        ) from error
