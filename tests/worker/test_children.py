"""Children that go astray, eat too much, or never end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from crew import Site, embedded_site, until

from stiefel_jobs.states import Blame, State
from stiefel_worker.children import family


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with one warm worker of two slots and 700 MB per job."""
    made = embedded_site(tmp_path_factory.mktemp("local"))
    try:
        made.start(concurrency=2, STIEFEL_WORKER_MEMORY_BYTES=700_000_000)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("leave", "process_exited"),
        ("abort", "killed_by_signal"),
        ("babble", "protocol_error"),
        ("smuggle", "protocol_error"),
    ],
)
def test_a_child_that_goes_astray_fails_the_attempt(local: Site, act: str, reason: str) -> None:
    job = local.wait(local.submit(act, text="/etc/passwd", max_attempts=1))
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.SYSTEM, reason)
    assert job.result is None


@pytest.mark.parametrize("act", ["eat", "gulp"])
def test_memory_has_a_limit_and_two_deaths_of_it_are_enough(local: Site, act: str) -> None:
    job = local.wait(local.submit(act, max_attempts=5))
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.RESOURCE, "out_of_memory")
    assert local.reasons(job.id) == ["out_of_memory"] * 2
    assert job.error is not None
    assert any(word in job.error["detail"] for word in ("MiB", "bytes"))


def test_a_deadline_ends_a_running_job(local: Site) -> None:
    job = local.wait(local.submit("idle", deadline_s=1.5), seconds=10)
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.TIMEOUT, "deadline_passed")


def test_the_family_of_a_process_is_found_over_generations() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
    try:
        until(lambda: len(family(parent.pid)) == 2, 20)
        assert family(parent.pid)[0] == parent.pid
        assert set(family(parent.pid)) < set(family(os.getpid()))
    finally:
        parent.communicate(b"\n", timeout=20)
    assert family(parent.pid) == [parent.pid]
