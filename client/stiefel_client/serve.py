"""The embedded service: API and worker as child processes under one small supervisor.

A child that dies is started again, later each time it dies early. Nothing is lost with
it: jobs live in the database, and a worker's death is what leases are for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx

from stiefel_client.errors import ConfigurationError

STEADY = 30.0  # seconds after which a child counts as started well
LONGEST_PAUSE = 30.0
START_LIMIT = 90.0
STOP_LIMIT = 75.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = field(default=0.0)

    def start(self) -> None:
        """Start it in its own session, so that a Ctrl-C reaches the supervisor alone."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            self.command, env=dict(self.env), start_new_session=True, preexec_fn=_die_with_parent
        )

    @property
    def running(self) -> bool:
        """Whether the process is alive now."""
        return self.process is not None and self.process.poll() is None

    def look(self, say: Callable[[str], None]) -> None:
        """Start it again if it died and its pause is over."""
        if self.running:
            return
        now = time.monotonic()
        if self.process is not None:
            self.failures = 1 if now - self.started > STEADY else self.failures + 1
            pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** (self.failures - 1))
            say(f"{self.name} ended with {self.process.returncode}; again in {pause:g} s")
            self.process, self.due = None, now + pause
        elif now >= self.due:
            self.start()

    def ask_to_stop(self) -> None:
        """SIGTERM, if it runs."""
        if self.process is not None and self.running:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to its whole session, if it runs."""
        if self.process is not None and self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _die_with_parent() -> None:
    """On Linux, have the kernel end this child when the supervisor is killed outright."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Runs API and worker until it is told to stop.

    Args:
        data_dir: where database, store, key and scratch lie.
        host: address to listen on.
        port: 0 picks a free one.
        say: where one-line notices go.

    Raises:
        ConfigurationError: the port is taken.
    """

    def __init__(self, data_dir: Path, *, host: str, port: int, say: Callable[[str], None]) -> None:
        self.data_dir = data_dir
        self.port = port or _free_port(host)
        self.url = f"http://{_reachable(host)}:{self.port}"
        self._say = say
        self._stopping = 0
        env = {
            **os.environ,
            "STIEFEL_DATA_DIR": str(data_dir),
            "STIEFEL_API_HOST": host,
            "STIEFEL_API_PORT": str(self.port),
            # A queue.py in the folder where the user stands is not the one that we import.
            "PYTHONSAFEPATH": "1",
        }
        self._api = Child("api", [sys.executable, "-m", "stiefel_api"], env)
        self._worker = Child("worker", [sys.executable, "-m", "stiefel_worker"], env)
        require_free(host, self.port)

    def run(self, ready: Callable[[], None]) -> int:
        """Start, supervise, stop; ``ready`` is called once when the API answers.

        Returns:
            0 after a wanted stop, 1 when the API never answered.

        Raises:
            ConfigurationError: another supervisor serves this data folder.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with _sole(self.data_dir):
            return self._run(ready)

    def _run(self, ready: Callable[[], None]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        try:
            # The API prepares the database and the first key, so it goes first.
            self._api.start()
            if not self._await_api():
                return 0 if self._stopping else 1
            self._announce()
            self._worker.start()
            ready()
            while not self._stopping:
                self._api.look(self._say)
                self._worker.look(self._say)
                time.sleep(0.2)
            return 0
        finally:
            self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping += 1
        if self._stopping == 1:
            self._say("stopping; once more to stop at once")

    def _await_api(self) -> bool:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and not self._stopping:
            if not self._api.running:
                self._say("the API did not start; its messages are above")
                return False
            if answers(self.url):
                return True
            time.sleep(0.1)
        return False

    def _announce(self) -> None:
        """Leave the URL where clients of this machine look for it, whole or not at all."""
        draft = self.data_dir / "api_url.draft"
        draft.write_text(self.url, encoding="ascii")
        draft.replace(self.data_dir / "api_url")

    def _withdraw(self) -> None:
        """Take back what ``_announce`` left, and no other service's address."""
        announced = self.data_dir / "api_url"
        with suppress(FileNotFoundError):
            if announced.read_text(encoding="ascii", errors="replace") == self.url:
                announced.unlink()

    def _stop(self) -> None:
        self._withdraw()
        children = (self._worker, self._api)
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + STOP_LIMIT
        while any(child.running for child in children):
            if self._stopping > 1 or time.monotonic() > deadline:
                for child in children:
                    child.kill()
            time.sleep(0.05)


@contextmanager
def _sole(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for one supervisor; the kernel lets go of it however that one ends."""
    import fcntl  # absent on Windows, where the rest of the client works

    with (data_dir / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{data_dir} is being served already",
                fix="Use that service, or serve another folder with --data-dir",
            ) from error
        except OSError:
            pass  # a file system without locks: jobs are safe there too, held by their leases
        yield


def answers(url: str) -> bool:
    """Whether a Stiefel API answers at ``url``."""
    try:
        return httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Make sure that ``port`` can be listened on.

    Raises:
        ConfigurationError: it is taken, or may not be used.
    """
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port} ({error.strerror})",
                fix="Choose another with --port, or --port 0 for any free one",
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _reachable(host: str) -> str:
    """The address under which this machine reaches a listener on ``host``."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
