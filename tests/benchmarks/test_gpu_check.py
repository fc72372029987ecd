"""benchmarks/gpu_check.py in small on the CPU: no section fails, so that it works when a card is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.mark.slow
def test_no_section_of_the_gpu_check_fails(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    result = json.loads(out.read_text())
    assert done.returncode == 0, [section for section in result.values() if "error" in str(section)]
    assert set(result["seconds"]) == {
        "matrix_tflops",
        "agreement",
        "predict",
        "training",
        "decoding",
        "one_process_group",
    }
    for name, found in result["agreement"].items():
        exact = name.endswith("none")
        assert found["same_top1"] == found["images"] or not exact, name
        assert found["largest_prob_change"] < (1e-6 if exact else 0.1), name
