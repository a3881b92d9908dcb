"""The life of a job: its states, who is to blame for a failure, and which verbs apply when."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. ``pausing`` and ``cancelling`` are wishes a running worker still owes."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Blame(StrEnum):
    """Who can mend a failure: the caller, the service, a bigger machine, or more time."""

    USER = "user"
    SYSTEM = "system"
    RESOURCE = "resource"
    TIMEOUT = "timeout"


TERMINAL: frozenset[State] = frozenset(
    {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}
)

#: A worker holds the lease: writes are fenced, and an expired lease is the sweeper's business.
LEASED: frozenset[State] = frozenset(
    {State.RUNNING, State.PAUSING, State.CANCELLING, State.FINALIZING}
)

#: Priorities by name. Waiting raises a job by one step per ``claim.AGEING_S``.
PRIORITIES: dict[str, int] = {"low": -1, "normal": 0, "high": 1}

#: Every transition there is. A store that wanted another one would be wrong.
NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset(
        {State.RUNNING, State.PAUSED, State.CANCELLED, State.EXPIRED, State.FAILED}
    ),
    State.RUNNING: frozenset(
        {State.FINALIZING, State.PAUSING, State.CANCELLING, State.QUEUED, State.FAILED}
    ),
    State.PAUSING: frozenset({State.PAUSED, State.CANCELLING, State.FAILED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED, State.EXPIRED}),
    State.CANCELLING: frozenset({State.CANCELLED}),
    State.FINALIZING: frozenset({State.SUCCEEDED, State.QUEUED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.EXPIRED: frozenset(),
}

_ACTIONS: dict[State, tuple[str, ...]] = {
    State.QUEUED: ("cancel", "pause"),
    State.RUNNING: ("cancel", "pause"),
    State.PAUSING: ("cancel",),
    State.PAUSED: ("cancel", "resume"),
    State.FAILED: ("retry",),
    State.CANCELLED: ("retry",),
}


def allowed_actions(state: State) -> tuple[str, ...]:
    """Return the verbs that would change a job in ``state`` (repeating one is always harmless)."""
    return _ACTIONS.get(state, ())
