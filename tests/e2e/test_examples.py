"""Every method has an example that runs as it stands, here for fewer epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stiefel.specs import SPECS

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("method", sorted(SPECS))
def test_the_example_of_each_method_runs(method: str, embedded_stack, tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = embedded_stack.environment() | {"STIEFEL_API_KEY": embedded_stack.key}
    name = f"{method.replace('.', '_')}.py"
    told = run(name, "--epochs", 3, "--output", out, env=env)
    assert f"{method}: job_" in told
    assert "verified: True" in told
    assert {"model.safetensors", "certificate.json", "report.json"} <= {
        p.name for p in out.iterdir()
    }


def test_the_example_of_a_sweep_prints_its_table(embedded_stack, tmp_path: Path) -> None:
    env = embedded_stack.environment() | {"STIEFEL_API_KEY": embedded_stack.key}
    told = run("sweep.py", "--epochs", 1, "--output", tmp_path, env=env)
    assert "6 jobs: 6 succeeded." in told
    assert "| train.dense |" in (tmp_path / "table.md").read_text()
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 6 + 2 * 3


def test_an_example_brings_its_own_service_where_none_answers(tmp_path: Path, stackless) -> None:
    told = run("project_unitary.py", "--epochs", 3, env=stackless)
    assert "verified: True" in told


@pytest.fixture
def stackless(embedded_stack, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without a service."""
    nowhere = {"STIEFEL_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    return embedded_stack.environment() | nowhere
