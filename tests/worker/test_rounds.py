"""Journal, endings, and the rounds a worker makes besides its jobs."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from stiefel_jobs.states import Blame
from stiefel_worker import endings
from stiefel_worker.journal import Journal
from stiefel_worker.kernel import memory_kills
from stiefel_worker.lease import passing, patiently
from stiefel_worker.pace import Pace
from stiefel_worker.reports import sizes
from stiefel_worker.sweeper import Rounds


def test_a_journal_keeps_what_was_not_taken() -> None:
    journal = Journal()
    journal.progress({"done": 1, "total": 2, "unit": "tensor", "bytes_done": 5})
    journal.metrics({"points": [[3, "loss", 0.5, 1.0]]})
    journal.event({"event": "job.log", "data": {"text": "hello"}})
    journal.flush(lambda *_: False)
    assert journal.waiting
    journal._due = 0.0
    seen: list[object] = []

    def write(*batch: object) -> bool:
        seen.extend(batch)
        return True

    journal.flush(write)
    progress, points, events = seen
    assert not journal.waiting
    assert (progress.done, progress.extra) == (1.0, {"bytes_done": 5})  # type: ignore[attr-defined]
    assert (points[0].name, points[0].step) == ("loss", 3)  # type: ignore[index]
    assert events[0].data == {"text": "hello"}  # type: ignore[index]


def test_a_pace_tells_the_slowest_and_the_fastest_stretch_of_a_stage() -> None:
    pace = Pace()
    pace.add(0.0, 0, total=1000, unit="step")
    assert pace.rates() == {}
    for second in range(1, 201):  # twice as fast in the second half
        pace.add(float(second), second * 2 if second > 100 else second, total=1000, unit="step")
    found = pace.rates()
    assert found["rate"] == pytest.approx(2.0, rel=0.05)
    assert found["rate_low"] == pytest.approx(1.0, rel=0.05)
    assert found["rate_high"] > 2.0
    pace.add(201.0, 1, total=50, unit="tensor")  # another stage
    assert pace.rates() == {}


@pytest.mark.parametrize(
    "message", [{"event": "x", "data": "text"}, {"event": "x"}, {"points": [[1]]}, {}]
)
def test_malformed_reports_are_refused(message: dict[str, object]) -> None:
    journal = Journal()
    take = journal.metrics if "points" in message else journal.event
    with pytest.raises((KeyError, TypeError, ValueError)):
        take(message)


@pytest.mark.parametrize(
    ("code", "reason", "blame"),
    [
        (-signal.SIGKILL, "out_of_memory", Blame.RESOURCE),
        (-signal.SIGSEGV, "killed_by_signal", Blame.SYSTEM),
        (1, "process_exited", Blame.SYSTEM),
        (None, "process_exited", Blame.SYSTEM),
    ],
)
def test_every_death_has_a_reason_and_a_blame(code: int, reason: str, blame: Blame) -> None:
    failure = endings.death(code, 2**30, 2**31)
    assert (failure.reason, failure.blame, failure.retry) == (reason, blame, True)
    assert set(failure.error) <= {"code", "detail", "fix"}


def test_a_kill_that_is_not_the_kernels_is_no_lack_of_memory(tmp_path: Path) -> None:
    failure = endings.death(-signal.SIGKILL, 2**20, 2**31, for_memory=False)
    assert (failure.reason, failure.blame) == ("killed_by_signal", Blame.SYSTEM)
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert memory_kills(tmp_path / "vmstat") == 3
    assert memory_kills(tmp_path / "none") is None


def test_a_child_cannot_invent_a_blame() -> None:
    with pytest.raises(ValueError, match="nobody"):
        endings.reported({"code": "x", "detail": "x", "blame": "nobody"})


def lost(kind: type[OperationalError] | type[ProgrammingError]) -> Exception:
    return kind("SELECT 1", {}, Exception("secret dsn\nmore"))


def test_patience_is_for_connections_not_for_mistakes() -> None:
    assert passing(lost(OperationalError))  # type: ignore[arg-type]
    assert not passing(lost(ProgrammingError))  # type: ignore[arg-type]
    tries = iter([lost(OperationalError), None])

    def act() -> str:
        if error := next(tries):
            raise error
        return "done"

    assert patiently(act) == "done"
    with pytest.raises(ProgrammingError):
        patiently(lambda: (_ for _ in ()).throw(lost(ProgrammingError)))


def test_a_round_that_fails_is_followed_by_another() -> None:
    enough = threading.Event()
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        if count == 3:
            enough.set()
        raise RuntimeError("trouble")

    rounds = Rounds("test", 0.01, work)
    rounds.start()
    assert enough.wait(5)
    rounds.stop()


def test_sizes_pass_over_links(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert sizes(tmp_path) == {"deep/file": 3}
