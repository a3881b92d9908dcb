"""A child process seen from its supervisor: start, listen, ask to stop, kill.

The child may be busy in C code, frozen, or taken over by a hostile file. Nothing here waits for
it, believes it, or unpickles what it sends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import re
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil

from stiefel_worker import child
from stiefel_worker.kernel import memory_kills
from stiefel_worker.order import Order
from stiefel_worker.plugins import PLUGINS_VARIABLE

MESSAGE_BYTES = 32 * 2**20
BACKLOG = 1000
SECRET = re.compile(
    r"(STIEFEL|AWS|GOOGLE|AZURE|REDIS|PG|CELERY)_?"
    r"|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|DATABASE_URL|BROKER_URL|_KEY$|_KEY_ID$)"
)
KEPT = {PLUGINS_VARIABLE}

_context = multiprocessing.get_context("forkserver")
# The standard library polls all children whenever one starts; two threads at once would steal
# each other's exit codes.
_processes = threading.Lock()


def scrub_environment() -> None:
    """Forget every variable that may hold a secret; the fork server inherits what is left."""
    for name in list(os.environ):
        if name not in KEPT and SECRET.match(name.upper()):
            del os.environ[name]


def warm_up(scratch: Path, private: list[str]) -> dict[str, Any]:
    """Start the fork server, wait until it has loaded torch, and rehearse a child in ``scratch``.

    Scrub the environment first. Returns the child's report: confinement, methods, torch's version.

    Raises:
        RuntimeError: children cannot start here; the log says why.
    """
    # Threads that spin while they wait starve their neighbours: on a busy machine of two cores a
    # singular value decomposition was measured 6 to 25 times slower than with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _context.set_forkserver_preload(["stiefel_worker.warm"])
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=child.rehearse, args=(theirs, str(scratch), private))
    process.start()
    theirs.close()
    try:
        return _decode(ours.recv_bytes(MESSAGE_BYTES))
    except EOFError:
        raise RuntimeError("A first child process could not start; see the log above.") from None
    finally:
        ours.close()
        process.join()


class Child:
    """One running child; ``messages`` yields its JSON objects in order."""

    def __init__(self, order: Order) -> None:
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(target=child.main, args=(theirs, order.encode()))
        with _processes:
            self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.peak_bytes = 0
        self._memory_kills = memory_kills()
        self.killed = False
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue(BACKLOG)
        self._reader = threading.Thread(target=self._listen, name=f"pipe-{self.pid}", daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        with _processes:
            return self._process.exitcode

    @property
    def silent(self) -> bool:
        """Whether it has ended and all its messages were read."""
        return not self._reader.is_alive() and self._messages.empty()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None after ``timeout_s``."""
        with suppress(queue.Empty):
            return self._messages.get(timeout=timeout_s)
        return None

    def ask_to_stop(self) -> None:
        """Ask for an end at the next safe point."""
        with suppress(OSError):
            self._connection.send_bytes(child.encode({"type": "stop"}))

    def kill(self) -> None:
        """End the child and everything it started, at once; harmless when it is gone."""
        self.killed = True
        for kill in (os.killpg, os.kill):  # before it leads a group, it has only its own id
            with suppress(ProcessLookupError, PermissionError):
                if self.exit_code is None or kill is os.killpg:
                    kill(self.pid, signal.SIGKILL)

    def resident_bytes(self) -> int:
        """Memory now held by the child and all its descendants; remembers the peak."""
        total = 0
        for pid in family(self.pid):
            with suppress(psutil.Error):
                total += psutil.Process(pid).memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def maybe_out_of_memory(self) -> bool:
        """Whether the kernel killed anything for memory while this child lived, or does not say."""
        return self._memory_kills is None or self._memory_kills != memory_kills()

    def close(self) -> None:
        """Kill what is left and release the pipe."""
        self.kill()
        wait([self._process.sentinel], timeout=5)
        while self._reader.is_alive():  # it may wait for room in a full backlog
            self.receive(0.05)
        self._connection.close()

    def _listen(self) -> None:
        """Read until the child is gone and its pipe empty; a grandchild may keep the pipe open."""
        try:
            while self._connection in wait([self._connection, self._process.sentinel]):
                self._messages.put(_decode(self._connection.recv_bytes(MESSAGE_BYTES)))
        except (EOFError, ConnectionError):
            pass  # it closed its end, or was killed: either way nothing more will come
        except (ValueError, OSError) as error:
            self._messages.put({"type": "nonsense", "detail": str(error)})
        wait([self._process.sentinel])


def family(pid: int) -> list[int]:
    """The process and all its descendants; looks at nobody else's, where the kernel lists them."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        with suppress(psutil.Error):
            return [pid, *(p.pid for p in psutil.Process(pid).children(recursive=True))]
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def _decode(data: bytes) -> dict[str, Any]:
    """One message; NaN and infinity become null and NUL a mark, which no database's JSON holds."""
    text = data.replace(rb"\u0000", rb"\ufffd")
    message = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message
