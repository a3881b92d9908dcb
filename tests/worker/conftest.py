"""Sites for tests: embedded and distributed, with a shared worker or without any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from crew import Site, distributed_site, embedded_site


@pytest.fixture(scope="module", params=["embedded", "distributed"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site with one warm worker of two slots, for tests that harm no worker."""
    folder = tmp_path_factory.mktemp("shared")
    made = (
        embedded_site(folder) if request.param == "embedded" else distributed_site(folder, request)
    )
    try:
        made.start(concurrency=2, STIEFEL_WORKER_MEMORY_BYTES=700_000_000)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", params=["embedded", "distributed"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site whose workers may be harmed: ``site.crew(n)`` replaces them."""
    folder = tmp_path_factory.mktemp("site")
    made = (
        embedded_site(folder) if request.param == "embedded" else distributed_site(folder, request)
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Site]:
    """An embedded site of the test's own, without workers."""
    made = embedded_site(tmp_path)
    try:
        yield made
    finally:
        made.close()
