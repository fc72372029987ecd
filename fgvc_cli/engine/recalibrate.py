"""A temperature for a checkpoint that has none, or another: an interrupted training stores T = 1."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save

from fgvc_cli.atomic import AtomicFile
from fgvc_cli.engine.calibration import Calibration
from fgvc_cli.models.weight_files import CHECKPOINT_KEY, read_tensors


def write_calibrated(source: Path, out: Path, calibration: Calibration, *, overwrite: bool = False) -> None:
    """Copy a checkpoint, all as it is but for its calibration; the figures it stores were measured without.

    Args:
        source: a checkpoint (``load_checkpoint`` has read it).
        out: the file to write, whole or not at all.

    Raises:
        FgvcError: as ``AtomicFile``.
    """
    tensors, header = read_tensors(source)
    document = json.loads(header[CHECKPOINT_KEY]) | {"calibration": asdict(calibration)}
    with AtomicFile(out, overwrite=overwrite) as stream:
        stream.write(save(tensors, metadata=header | {CHECKPOINT_KEY: json.dumps(document)}))
