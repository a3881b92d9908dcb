"""What an import may cost, seen in a fresh interpreter; and that the documented ones work."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

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


@pytest.mark.parametrize("package", ["projection", "lowrank", "unitary"])
def test_a_package_of_core_offers_what_it_names(package: str) -> None:
    module = import_module(f"stiefel.{package}")
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("page", ["projection", "unitary", "lowrank", "conversion", "training"])
def test_the_imports_that_the_documents_show_work(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text()
    for line in re.findall(r"^from stiefel\S* import [^(\n]+$", text, re.MULTILINE):
        exec(line, {})
