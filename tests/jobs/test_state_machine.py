"""Random sequences of verbs against a model of the protocol that knows no database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Select, Table, delete, select
from yard import ERROR, TENANT, Yard, check_history, output

from stiefel_jobs.database import Database
from stiefel_jobs.errors import ActionNotAllowedError, StaleFenceError
from stiefel_jobs.records import NewEvent, Segment, StateFile
from stiefel_jobs.states import LEASED, TERMINAL, Blame, State
from stiefel_jobs.store import actions, claim, finish, progress
from stiefel_jobs.store.queries import events, get_job
from stiefel_jobs.store.sweep import sweep
from stiefel_jobs.tables import artifacts, checkpoints, jobs

LEASE_S = 1000.0
MAX_ATTEMPTS = 3
#: More by night: the sequences that find a bug are rare.
EXAMPLES = int(os.environ.get("STIEFEL_TEST_EXAMPLES", "15"))
TENANTS = (TENANT, "rival")


@dataclass
class Model:
    """What the protocol promises of one job; times are those the test has let pass."""

    tenant: str
    state: State = State.QUEUED
    fence: int = 0
    failures: int = 0
    deaths: int = 0
    lease_until: float = 0.0
    not_before: float = 0.0
    step: int | None = None
    commits: int = 0

    def holds(self, fence: int) -> bool:
        return self.state in LEASED and fence == self.fence

    def lost(self, now: float) -> bool:
        return self.state in LEASED and self.lease_until < now

    def fail(self, now: float, *, resource: bool = False, backoff: bool = True) -> None:
        if self.state is State.CANCELLING:
            self.state = State.CANCELLED
            return
        self.failures += 1
        self.deaths += resource
        if self.failures >= MAX_ATTEMPTS or self.deaths >= 2:
            self.state = State.FAILED
        elif self.state is State.PAUSING:
            self.state = State.PAUSED
        else:
            self.state = State.QUEUED
            self.not_before = now + (2.0 ** (self.failures - 1) if backoff else 0.0)

    def lose(self, now: float) -> None:
        if self.state is State.PAUSING:
            self.state = State.PAUSED
        else:
            self.fail(now, backoff=False)


Held = tuple[str, int]  # job id and fence


class Protocol(RuleBasedStateMachine):
    """Owners, workers and sweepers at one database; every rule checks itself against the model."""

    db: Database  # set by the test

    ids: Bundle[str] = Bundle("ids")
    claims: Bundle[Held] = Bundle("claims")  # stale ones stay: they are the zombies

    def __init__(self) -> None:
        super().__init__()
        self.yard = Yard(self.db)
        self.queue = f"q-{uuid4().hex[:12]}"
        self.now = 0.0
        self.models: dict[str, Model] = {}

    def teardown(self) -> None:
        for job_id, model in self.models.items():
            check_history(_story(self.db, job_id, model))
        with self.db.write() as connection:
            connection.execute(delete(jobs).where(jobs.c.queue == self.queue))
        self.yard.advance(-self.now)

    # --- the owner ---

    @rule(target=ids, tenant=st.sampled_from(TENANTS), priority=st.integers(-1, 1))
    def submit(self, tenant: str, priority: int) -> str:
        job = self.yard.submit(
            tenant=tenant, queue=self.queue, priority=priority, max_attempts=MAX_ATTEMPTS
        )
        self.models[job.id] = Model(tenant, not_before=self.now)
        return job.id

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        moves = {
            State.QUEUED: State.CANCELLED,
            State.PAUSED: State.CANCELLED,
            State.RUNNING: State.CANCELLING,
            State.PAUSING: State.CANCELLING,
        }
        done = {State.CANCELLING, State.CANCELLED}
        self._act(actions.cancel, job_id, moves, done)

    @rule(job_id=ids)
    def pause(self, job_id: str) -> None:
        moves = {State.QUEUED: State.PAUSED, State.RUNNING: State.PAUSING}
        self._act(actions.pause, job_id, moves, {State.PAUSED, State.PAUSING})

    @rule(job_id=ids)
    def resume(self, job_id: str) -> None:
        moves = {State.PAUSED: State.QUEUED}
        if self._act(actions.resume, job_id, moves, {State.QUEUED, State.RUNNING}):
            self.models[job_id].not_before = self.now

    @rule(job_id=ids)
    def retry(self, job_id: str) -> None:
        model = self.models[job_id]
        moves = {State.FAILED: State.QUEUED, State.CANCELLED: State.QUEUED}
        if self._act(actions.retry, job_id, moves, {State.QUEUED, State.RUNNING}):
            model.failures = model.deaths = 0
            model.not_before = self.now

    def _act(
        self,
        verb: Callable[..., Any],
        job_id: str,
        moves: dict[State, State],
        done: set[State],
    ) -> bool:
        model = self.models[job_id]
        if model.state in moves:
            model.state = moves[model.state]
            assert verb(self.db, tenant=model.tenant, job_id=job_id).state is model.state
            return True
        if model.state in done:
            assert verb(self.db, tenant=model.tenant, job_id=job_id).state is model.state
        else:
            with pytest.raises(ActionNotAllowedError):
                verb(self.db, tenant=model.tenant, job_id=job_id)
        return False

    # --- workers ---

    @rule(target=claims, worker=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, worker: str) -> Any:
        taken = claim.claim(self.db, worker=worker, queues=[self.queue], lease_s=LEASE_S)
        ready = {job_id for job_id, model in self.models.items() if self._claimable(model)}
        for job_id in self._given_up(set() if taken is None else {taken.job_id}):
            self.models[job_id].lose(self.now)
            ready.discard(job_id)
        if taken is None:
            assert not ready
            return multiple()
        assert taken.job_id in ready
        model = self.models[taken.job_id]
        if model.state is not State.QUEUED:
            model.lose(self.now)
        assert model.state is State.QUEUED
        model.state, model.fence = State.RUNNING, model.fence + 1
        model.lease_until = self.now + LEASE_S
        assert taken.fence == model.fence
        assert (taken.checkpoint.step if taken.checkpoint else None) == model.step
        return taken.job_id, taken.fence

    @rule(target=claims, held=claims)
    def take_over(self, held: Held) -> Any:
        """The worker freezes past its lease, and another one comes by: a zombie is born."""
        self.advance(2 * LEASE_S)
        return self.claim("w4")

    def _claimable(self, model: Model) -> bool:
        if model.state is State.QUEUED:
            return model.not_before <= self.now
        return model.state in {State.RUNNING, State.FINALIZING} and model.lost(self.now)

    def _given_up(self, taken: set[str]) -> list[str]:
        """Jobs that the claim met on its way and failed for good."""
        return [
            job_id
            for job_id, model in self.models.items()
            if job_id not in taken
            and model.state in {State.RUNNING, State.FINALIZING}
            and model.lost(self.now)
            and get_job(self.db, tenant=model.tenant, job_id=job_id).state is State.FAILED
        ]

    @rule(held=claims)
    def renew(self, held: Held) -> None:
        state = self._fenced(held, claim.renew, lease_s=LEASE_S)
        if state is not None:
            assert state is self.models[held[0]].state
            self.models[held[0]].lease_until = self.now + LEASE_S

    @rule(held=claims)
    def report(self, held: Held) -> None:
        self._fenced(held, progress.record, events=[NewEvent("job.log", {"from": held[1]})])

    @rule(held=claims, step=st.integers(0, 100))
    def checkpoint(self, held: Held, step: int) -> None:
        model = self.models[held[0]]
        files = [StateFile("body.bin", 1, [Segment(f"{step:064x}", 1)])]
        self._fenced(held, progress.checkpoint, step=step, files=files)
        if model.holds(held[1]):
            model.step = step

    @rule(held=claims)
    def begin_finalizing(self, held: Held) -> None:
        model = self.models[held[0]]
        state = self._fenced(held, finish.begin_finalizing)
        if model.holds(held[1]) and model.state is State.RUNNING:
            model.state = State.FINALIZING
        assert state in {None, model.state}

    @rule(held=claims)
    def finish(self, held: Held) -> None:
        model = self.models[held[0]]
        arguments = {"artifacts": [output()], "result": {}}
        if model.state is not State.FINALIZING:
            with pytest.raises(StaleFenceError):
                finish.finish(self.db, job_id=held[0], fence=held[1], **arguments)
        elif self._fenced(held, finish.finish, **arguments) is not None:
            model.state, model.step = State.SUCCEEDED, None
            model.commits += 1

    @rule(
        held=consumes(claims),
        blame=st.sampled_from([Blame.SYSTEM, Blame.RESOURCE, Blame.USER]),
        retry=st.booleans(),
    )
    def fail(self, held: Held, blame: Blame, retry: bool) -> None:
        model = self.models[held[0]]
        state = self._fenced(
            held, finish.fail, reason="broken", blame=blame, error=ERROR, retry=retry
        )
        if state is None:
            return
        if (retry and blame is not Blame.USER) or model.state is State.CANCELLING:
            model.fail(self.now, resource=blame is Blame.RESOURCE)
        else:
            model.state = State.FAILED
        assert state is model.state

    @rule(held=claims)
    def drain(self, held: Held) -> None:
        model = self.models[held[0]]
        state = self._fenced(held, finish.release, to=State.QUEUED, reason="drained")
        if state is None:
            return
        wishes = {State.PAUSING: State.PAUSED, State.CANCELLING: State.CANCELLED}
        model.state = wishes.get(model.state, State.QUEUED)
        model.not_before = self.now
        assert state is model.state

    def _fenced(self, held: Held, verb: Callable[..., Any], **arguments: Any) -> Any:
        """Call a verb under a fence; None where the model says that it must be refused."""
        job_id, fence = held
        if self.models[job_id].holds(fence):
            return verb(self.db, job_id=job_id, fence=fence, **arguments)
        with pytest.raises(StaleFenceError):
            verb(self.db, job_id=job_id, fence=fence, **arguments)
        return None

    # --- time ---

    @rule(seconds=st.sampled_from([60.0, 2 * LEASE_S]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.yard.advance(seconds)

    @rule()
    def sweep(self) -> None:
        sweep(self.db)
        for model in self.models.values():
            if model.lost(self.now):
                model.lose(self.now)

    # --- what always holds ---

    @invariant()
    def the_database_agrees(self) -> None:
        query = select(jobs).where(jobs.c.queue == self.queue)
        with self.db.read() as connection:
            rows = {row.id: row for row in connection.execute(query)}
            made = dict.fromkeys(self.models, 0)
            steps: dict[str, int | None] = dict.fromkeys(self.models)
            for artifact in connection.execute(_of(artifacts, self.models)):
                made[artifact.job_id] += 1
            for kept in connection.execute(_of(checkpoints, self.models).order_by("number")):
                steps[kept.job_id] = kept.step
        assert rows.keys() == self.models.keys()
        for job_id, model in self.models.items():
            row = rows[job_id]
            assert (row.state, row.fence) == (model.state, model.fence)
            assert (row.failures, row.resource_deaths) == (model.failures, model.deaths)
            assert (row.worker is not None) == (model.state in LEASED)
            assert (row.finished_at is not None) == (model.state in TERMINAL)
            assert made[job_id] == model.commits <= 1
            assert steps[job_id] == model.step


def _of(table: Table, job_ids: Iterable[str]) -> Select[Any]:
    return select(table).where(table.c.job_id.in_(list(job_ids)))


def _story(db: Database, job_id: str, model: Model) -> list[Any]:
    return events(db, tenant=model.tenant, job_id=job_id, limit=10_000)


def test_no_sequence_of_verbs_breaks_the_protocol(db: Database) -> None:
    machine = type("ProtocolHere", (Protocol,), {"db": db})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
