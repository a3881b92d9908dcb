"""What goes wrong with workers themselves: killed, frozen, drained, cut off."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from crew import LEASE_S, TENANT, Site, Worker, alive, distributed_site, embedded_site, until

from stiefel_jobs.states import Blame, State
from stiefel_jobs.store.actions import cancel, pause
from stiefel_jobs.store.queries import checkpoints


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose worker waits two seconds for progress and half a second for a pause."""
    made = embedded_site(tmp_path_factory.mktemp("impatient"))
    try:
        made.start(STIEFEL_HANG_S=2, STIEFEL_WORKER_PAUSE_S=0.5)
        yield made
    finally:
        made.close()


def test_a_killed_worker_costs_no_job(site: Site) -> None:
    """SIGKILL mid-job: another worker goes on from the last checkpoint and commits once."""
    site.crew(2)
    job_id = site.submit("count", steps=30, step_s=0.1)
    site.began(job_id)
    until(lambda: checkpoints(site.db, tenant=TENANT, job_id=job_id), 30)
    pid = site.events(job_id, "job.process")[0].data["pid"]
    holder(site, job_id).kill()
    killed = time.monotonic()
    until(lambda: not alive(pid), 2)  # no orphan goes on computing
    began = site.began(job_id, times=2)
    assert began["done"] > 0
    assert time.monotonic() - killed < LEASE_S + 15
    job = site.wait(job_id)
    assert job.state is State.SUCCEEDED
    assert site.reasons(job_id) == ["worker_lost", "succeeded"]
    assert site.read(job, "counted.bin") == b"head:" + bytes(range(30))
    ends = [e for e in site.events(job_id, "job.status") if e.data["state"] == "succeeded"]
    assert len(ends) == 1


def test_a_worker_frozen_past_its_lease_writes_nothing_when_it_wakes(site: Site) -> None:
    site.crew(2)
    job_id = site.submit("count", steps=80, step_s=0.05)
    site.began(job_id)
    frozen = holder(site, job_id)
    pid = site.events(job_id, "job.process")[0].data["pid"]
    with frozen.freeze():
        site.began(job_id, times=2)
    until(lambda: f"{job_id} attempt 1 fence 1: stale fence" in frozen.log, 10)
    until(lambda: not alive(pid), 3)
    job = site.wait(job_id)
    assert site.reasons(job_id) == ["worker_lost", "succeeded"]
    assert site.read(job, "counted.bin") == b"head:" + bytes(range(80))


def test_a_drained_worker_hands_its_job_back(site: Site) -> None:
    site.crew(2)
    job_id = site.submit("count", steps=40, step_s=0.1)
    until(lambda: checkpoints(site.db, tenant=TENANT, job_id=job_id), 30)
    first = holder(site, job_id)
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began < 8
    assert site.began(job_id, times=2)["done"] > 0
    assert site.wait(job_id).state is State.SUCCEEDED
    assert site.reasons(job_id) == ["drained", "succeeded"]
    assert site.job(job_id).failures == 0
    until(lambda: not site.scratch(), 5)


def holder(site: Site, job_id: str) -> Worker:
    """The worker that holds a job now."""
    pid = f"-{(site.job(job_id).worker or '').split('-')[-2]}-"
    return next(w for w in site.workers if f"-{w.process.pid}-" == pid)


def test_a_child_killed_from_outside_is_tried_again_from_its_checkpoint(site: Site) -> None:
    site.crew(1)
    job_id = site.submit("count", steps=20, step_s=0.1)
    until(lambda: checkpoints(site.db, tenant=TENANT, job_id=job_id), 30)
    os.kill(site.events(job_id, "job.process")[0].data["pid"], signal.SIGKILL)
    assert site.began(job_id, times=2)["done"] > 0
    job = site.wait(job_id)
    assert job.state is State.SUCCEEDED
    assert site.reasons(job_id) == ["killed_by_signal", "succeeded"]


def test_a_fork_server_that_dies_is_started_again(impatient: Site) -> None:
    job_id = impatient.submit("idle")
    child = impatient.began(job_id)["pid"]
    stat = Path(f"/proc/{child}/stat").read_text()
    fork_server = int(stat.rpartition(")")[2].split()[1])
    assert fork_server != impatient.workers[0].process.pid
    os.kill(fork_server, signal.SIGKILL)
    until(lambda: not alive(child), 2)
    assert impatient.began(job_id, times=2)["pid"] != child
    cancel(impatient.db, tenant=TENANT, job_id=job_id)


def test_no_progress_is_a_hang(impatient: Site) -> None:
    job = impatient.wait(impatient.submit("idle", max_attempts=1), seconds=10)
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.TIMEOUT, "no_progress")


def test_a_pause_that_finds_no_safe_point_is_enforced(impatient: Site) -> None:
    job_id = impatient.submit("idle")
    child = impatient.began(job_id)["pid"]
    pause(impatient.db, tenant=TENANT, job_id=job_id)
    impatient.wait(job_id, State.PAUSED, seconds=5)
    until(lambda: not alive(child), 1)


def test_cut_database_connections_cost_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = distributed_site(tmp_path, request)
    try:
        made.start()
        job_id = made.submit("count", steps=30, step_s=0.1)
        made.began(job_id)
        url = made.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid != %s"
        cut = f"SELECT pg_terminate_backend(pid) {others}".encode()
        with psycopg.connect(url, autocommit=True) as operator:
            for _ in range(8):
                operator.execute(cut, [operator.info.backend_pid])
                time.sleep(0.3)
        job = made.wait(job_id)
        assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
        assert made.read(job, "counted.bin") == b"head:" + bytes(range(30))
    finally:
        made.close()


def test_a_worker_without_a_broker_still_works_and_still_drains(embedded: Site) -> None:
    """Nothing listens on the broker's port: jobs are found by polling."""
    worker = embedded.start(wait=False, STIEFEL_BROKER_URL="redis://127.0.0.1:1/0")
    job = embedded.wait(embedded.submit("count", ring=False), seconds=30)
    assert job.state is State.SUCCEEDED
    assert worker.stop() == 0


def test_a_message_that_is_no_json_costs_neither_worker_nor_job(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Celery calls it unrecoverable and ends; this worker starts it anew, and hears bells again."""
    made = distributed_site(tmp_path, request)
    made.queue = "alone"  # workers of other tests listen to the same Redis
    try:
        worker = made.start(STIEFEL_POLL_S=60)
        job_id = made.submit("count", steps=20, step_s=0.1)
        made.began(job_id)
        with redis.Redis.from_url(made.settings.broker_url) as client:
            client.lpush(made.queue, "no json")
        until(lambda: "Unrecoverable error" in worker.log, 10)
        job = made.wait(job_id)
        assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
        until(lambda: "it starts anew" in worker.log, 10)
        job = made.wait(made.submit("count"))
        assert job.state is State.SUCCEEDED
        assert "draining" not in worker.log
        assert worker.stop() == 0
    finally:
        made.close()


def test_slots_are_counted_however_a_job_arrives(embedded: Site) -> None:
    """Bells and polling together never run more than ``concurrency`` jobs at a time."""
    embedded.start(concurrency=2, STIEFEL_POLL_S=0.05)
    jobs = [embedded.submit("count", steps=4, step_s=0.1, ring=n % 2 == 0) for n in range(8)]
    most = 0
    while any(embedded.job(job_id).finished_at is None for job_id in jobs):
        states = [embedded.job(job_id).state for job_id in jobs]
        most = max(most, sum(s in {State.RUNNING, State.FINALIZING} for s in states))
        time.sleep(0.02)
    assert most == 2
    assert {embedded.job(job_id).state for job_id in jobs} == {State.SUCCEEDED}
