from __future__ import annotations

import pytest

from stiefel_jobs.states import LEASED, NEXT, TERMINAL, State, allowed_actions

REACHED_BY_ACTION = {
    "cancel": {State.CANCELLED, State.CANCELLING},
    "pause": {State.PAUSED, State.PAUSING},
    "resume": {State.QUEUED},
    "retry": {State.QUEUED},
}


def test_every_state_has_its_transitions() -> None:
    assert set(NEXT) == set(State)


def test_every_state_can_be_reached() -> None:
    assert set().union(*NEXT.values()) == set(State)


@pytest.mark.parametrize("state", State)
def test_actions_lead_where_the_state_machine_leads(state: State) -> None:
    for action in allowed_actions(state):
        assert NEXT[state] & REACHED_BY_ACTION[action]


def test_only_success_and_expiry_are_final_for_the_owner_too() -> None:
    assert {state for state in TERMINAL if not NEXT[state]} == {State.SUCCEEDED, State.EXPIRED}


def test_what_is_leased_is_not_over() -> None:
    assert not LEASED & TERMINAL
