"""A worker that is stuck ends itself; one that slept does not."""

from __future__ import annotations

from stiefel_worker.sweeper import Rounds, Standstill


def standstill() -> tuple[Rounds, Standstill]:
    rounds = Rounds("poller", 5.0, lambda: None)
    rounds.last_at = 100.0
    return rounds, Standstill(rounds, asleep_s=45.0, now=100.0)


def test_silence_is_counted_while_somebody_looks() -> None:
    rounds, standstill_ = standstill()
    assert [standstill_.seconds(100.0 + t) for t in (5, 40, 80)] == [5, 40, 80]
    rounds.last_at = 178.0
    assert standstill_.seconds(181.0) == 3.0


def test_a_stopped_process_counts_anew() -> None:
    _, standstill_ = standstill()
    standstill_.seconds(110.0)
    assert standstill_.seconds(400.0) == 0.0
    assert standstill_.seconds(405.0) == 5.0
