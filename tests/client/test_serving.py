"""The supervisor behind `stiefel serve`, with children that end at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stiefel_client.errors import ConfigurationError
from stiefel_client.serve import Supervisor


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The supervisor takes signals over, as a program of its own may."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    """One whose API cannot start."""
    made = Supervisor(tmp_path, host="127.0.0.1", port=0, say=lambda text: None)
    made._api.command = [sys.executable, "-c", "raise SystemExit(1)"]
    return made


@pytest.mark.parametrize("mine", [True, False])
def test_it_takes_back_its_own_address_only(supervisor: Supervisor, mine: bool) -> None:
    announced = supervisor.data_dir / "api_url"
    announced.write_text(supervisor.url if mine else "http://127.0.0.1:1")
    assert supervisor.run(lambda: None) == 1
    assert announced.exists() != mine


def test_a_folder_is_served_by_one_and_free_again_after_it(supervisor: Supervisor) -> None:
    def second() -> None:
        other = Supervisor(supervisor.data_dir, host="127.0.0.1", port=0, say=lambda text: None)
        with pytest.raises(ConfigurationError, match="served already"):
            other.run(lambda: None)
        tried.append(True)
        supervisor._stopping = 2

    tried: list[bool] = []
    supervisor._await_api = lambda: True  # type: ignore[method-assign]
    assert supervisor.run(second) == 0
    assert tried
    assert supervisor.run(lambda: None) == 0
