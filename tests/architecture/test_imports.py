"""What an import may cost: each check runs in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after ``statement``."""
    code = f"{statement}; import sys; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return set(output.stdout.split())


@pytest.mark.parametrize("package", ["stiefel_api.app", "stiefel_jobs.doorbell", "stiefel.specs"])
def test_importing_the_service_side_leaves_torch_and_celery_out(package: str) -> None:
    loaded = modules_after(f"import {package}")
    assert not loaded & {"torch", "celery", "kombu", "numba"}


def test_importing_the_client_loads_nothing_of_the_service() -> None:
    loaded = modules_after("import stiefel_client, stiefel_client.cli")
    service = {"stiefel", "stiefel_jobs", "stiefel_api", "stiefel_worker", "sqlalchemy", "torch"}
    assert not loaded & service
