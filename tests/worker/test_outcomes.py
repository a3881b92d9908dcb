"""Every way in which a job can go on a healthy worker."""

from __future__ import annotations

import json
import time

import pytest
from crew import TENANT, Site, alive, until

from stiefel_jobs.states import Blame, State
from stiefel_jobs.store.actions import cancel, pause, resume
from stiefel_jobs.store.queries import metrics


def test_a_job_runs_and_delivers_concatenated_files(shared: Site) -> None:
    job = shared.wait(shared.submit("count", steps=5))
    assert job.state is State.SUCCEEDED
    assert shared.read(job, "counted.bin") == b"head:" + bytes(range(5))
    assert job.result is not None
    assert job.result["metrics"] == {"steps": 5}
    points = metrics(shared.db, tenant=TENANT, job_id=job.id)
    assert [(p.name, p.step, p.value) for p in points] == [("step", n, float(n)) for n in range(5)]
    assert job.progress is not None
    assert (job.progress["done"], job.progress["total"]) == (5, 5)
    until(lambda: not shared.scratch(), 5)


def test_numbers_that_are_none_and_texts_with_nul_are_stored_as_what_they_are(
    shared: Site,
) -> None:
    job = shared.wait(shared.submit("strange"))
    assert job.result == {"files": {}, "metrics": {"final": None}}
    assert shared.began(job.id) == {"worst": None, "text": "a\ufffdb"}
    assert [p.value for p in metrics(shared.db, tenant=TENANT, job_id=job.id)] == [None]


def test_the_lineage_says_what_made_the_result(shared: Site) -> None:
    job = shared.wait(shared.submit("count", steps=1, seed=7))
    lineage = json.loads(shared.read(job, "lineage.json"))
    assert (lineage["job"], lineage["seed"], lineage["input"]) == (job.id, 7, {})
    assert lineage["spec"]["act"] == "count"
    assert lineage["code"].startswith("0.")
    assert set(lineage["environment"]) == {"python", "torch", "platform", "device", "threads"}


def test_inputs_are_staged_byte_for_byte(shared: Site) -> None:
    data = bytes(range(256)) * 50_000
    artifact = shared.upload(data)
    job = shared.wait(shared.submit("copy", file=artifact.id))
    assert shared.read(job, "copy.bin") == data
    assert job.result is not None
    assert job.result["files"]["copy.bin"]["sha256"] == artifact.sha256


def test_the_callers_mistake_is_named_and_not_tried_again(shared: Site) -> None:
    job = shared.wait(shared.submit("refuse"))
    assert (job.state, job.blame, job.attempt) == (State.FAILED, Blame.USER, 1)
    assert job.error == {
        "code": "non_finite",
        "detail": "blocks.0.weight holds NaN.",
        "fix": "Mend it.",
        "tensor": "blocks.0.weight",
    }


def test_an_exception_is_tried_again_and_its_text_stays_in_the_log(shared: Site) -> None:
    job = shared.wait(shared.submit("crash", text="hunter2", max_attempts=2))
    assert (job.state, job.blame) == (State.FAILED, Blame.SYSTEM)
    assert shared.reasons(job.id) == ["internal_error"] * 2
    assert "hunter2" not in str(shared.events(job.id))
    assert "RuntimeError: hunter2" in shared.workers[0].log


@pytest.mark.parametrize("act", ["stuck", "family"])
def test_cancel_kills_within_two_seconds(shared: Site, act: str) -> None:
    job_id = shared.submit(act)
    data = shared.began(job_id)
    time.sleep(0.4)
    asked = time.monotonic()
    cancel(shared.db, tenant=TENANT, job_id=job_id)
    processes = [pid for name, pid in data.items() if name in {"pid", "grandchild"}]
    assert processes
    until(lambda: not any(alive(pid) for pid in processes), 2)
    job = shared.wait(job_id, State.CANCELLED, seconds=2 - (time.monotonic() - asked))
    assert job.result is None


def test_pause_keeps_the_work_and_resume_continues_it(shared: Site) -> None:
    job_id = shared.submit("count", steps=30, step_s=0.05)
    shared.began(job_id)
    until(lambda: (shared.job(job_id).progress or {}).get("done", 0) > 2, 30)
    pause(shared.db, tenant=TENANT, job_id=job_id)
    shared.wait(job_id, State.PAUSED, seconds=5)
    resume(shared.db, tenant=TENANT, job_id=job_id)
    job = shared.wait(job_id)
    assert job.state is State.SUCCEEDED
    assert shared.began(job_id, times=2)["done"] > 2
    assert shared.read(job, "counted.bin") == b"head:" + bytes(range(30))


def test_state_files_may_be_deleted_while_they_are_uploaded(shared: Site) -> None:
    job_id = shared.submit("rotate", steps=40, step_s=0.05)
    shared.began(job_id)
    time.sleep(1)
    pause(shared.db, tenant=TENANT, job_id=job_id)
    shared.wait(job_id, State.PAUSED, seconds=5)
    resume(shared.db, tenant=TENANT, job_id=job_id)
    job = shared.wait(job_id)
    again = shared.began(job_id, times=2)
    assert again["done"] > 0
    assert again["files"] == 1
    assert shared.read(job, "last.bin") == bytes([40]) * 100_000


def test_a_bell_that_nobody_rang_costs_a_polling_interval(shared: Site) -> None:
    job = shared.wait(shared.submit("count", ring=False), seconds=5)
    assert job.state is State.SUCCEEDED


def test_ringing_often_runs_a_job_once(shared: Site) -> None:
    job_id = shared.submit("count", steps=10, step_s=0.05)
    for _ in range(20):
        assert shared.bell.ring(shared.queue, job_id)
    shared.wait(job_id)
    time.sleep(0.5)
    assert len(shared.events(job_id, "trial.began")) == 1
