"""A conversion's memory belongs to its largest matrix, not to the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from stiefel.methods.local import run_local
from stiefel.specs import parse_spec
from stiefel.specs.plan import plan
from stiefel.weights import TensorReader

torch.set_num_threads(1)
spec = parse_spec(json.loads(sys.argv[3]))
run_local(spec, Path(sys.argv[1]), Path(sys.argv[2]))
with TensorReader(Path(sys.argv[1]) / "model.safetensors") as reader:
    estimate = plan(spec, {"model.safetensors": reader.table}).peak_memory_bytes
# Not ru_maxrss, which a child inherits from the process that started it.
lines = Path("/proc/self/status").read_text().splitlines()
peak = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
print(json.dumps({"peak": peak, "estimate": estimate}))
"""

SPECS = {
    "project.unitary": {"method": "project.unitary", "input": "a", "include": ["w.*"]},
    "factorize.low_rank": {
        "method": "factorize.low_rank",
        "input": "a",
        "include": ["w.*"],
        "rule": {"by": "energy", "value": 0.5},
    },
}


def measured(folder: Path, count: int, spec: dict[str, object]) -> dict[str, int]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((1024, 256), dtype=np.float32)
    tensors = {f"w.{i}": np.roll(matrix, i) for i in range(count)}
    tensors |= {f"copy.{i}": matrix.repeat(4, axis=0) for i in range(3 * count)}
    save_file(tensors, folder / "model.safetensors")
    del tensors
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(folder / "out"), json.dumps(spec)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    figures: dict[str, int] = json.loads(result.stdout)
    return figures


@pytest.mark.parametrize("name", SPECS)
def test_six_times_the_checkpoint_takes_no_more_memory(name: str, tmp_path: Path) -> None:
    small = measured(tmp_path / "small", 1, SPECS[name])
    large = measured(tmp_path / "large", 6, SPECS[name])
    assert large["peak"] <= 1.1 * small["peak"]
    assert large["peak"] <= large["estimate"]
