"""What the README promises, word for word."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from safetensors.numpy import load_file

from stiefel_client.verify import verify

README = Path(__file__).parents[2] / "README.md"


def curl_block() -> str:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", README.read_text(), re.S)
    return next(block for block in blocks if "curl" in block and "/v1/jobs" in block)


def test_the_readmes_curl_calls_work_as_they_stand(embedded_stack, minilm, tmp_path) -> None:
    shutil.copy(minilm, tmp_path / "model.safetensors")
    script = "set -euo pipefail\n" + curl_block()
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=embedded_stack.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    new = set(tmp_path.iterdir()) - {tmp_path / "model.safetensors", tmp_path / "client-data"}
    (weights,) = [path for path in new if path.suffix == ".safetensors"]
    assert load_file(weights).keys() == load_file(minilm).keys()
    certificate = tmp_path / "certificate.json"
    if certificate.exists():
        assert verify(weights, certificate=certificate, original=minilm).ok


def test_the_command_line_goes_all_the_way(embedded_stack, minilm, tmp_path) -> None:
    def stiefel(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["stiefel", *map(str, arguments)],
            cwd=tmp_path,
            env=embedded_stack.environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )

    include = "encoder.layer.0.attention.self.*.weight"
    done = stiefel(
        *["submit", minilm, "--method", "project.unitary", "--include", include],
        *["--wait", "--timeout", "120", "--download", "out"],
    )
    assert done.returncode == 0, done.stderr
    verified = stiefel("verify", "out/model.safetensors", "--input", minilm)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "VERIFIED" in verified.stdout
    assert stiefel("doctor").returncode == 0
    assert "project.unitary" in stiefel("methods").stdout
    assert "determinant" in stiefel("methods", "project.unitary").stdout
    assert "succeeded" in stiefel("jobs").stdout
    assert stiefel("watch", "job_unknown").returncode == 2
