"""One training run in several processes, started by torch's elastic launcher.

The process that was asked to run the method launches one process per device and stays the only
one that knows the host: process 0 reports to it over a pipe, in JSON, and the others are silent.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from stiefel.errors import StiefelError, StopRequested, TooLargeError
from stiefel.methods.member import Message, described, member, revived
from stiefel.methods.protocol import Delivery, Outcome
from stiefel.run import Run
from stiefel.specs.training import TrainingSpec

HERE = "127.0.0.1"


def run_in_several(spec: TrainingSpec, run: Run) -> Outcome:
    """Run the method of ``spec`` in ``spec.devices`` processes on this machine.

    Raises:
        StopRequested: after a checkpoint, as in a single process.
        InvalidInputError: as the method raises it, from whichever process.
        MemoryError: a process ran out of memory.
        RuntimeError: a process died; the message says how.
        StiefelError: the processes could not talk to each other on this worker.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _require_loopback()
    pipes = [get_context("spawn").Pipe() for _ in range(spec.devices)]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spec.devices,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HERE}:0",
        local_addr=HERE,
        start_method="spawn",  # a fork server needs a socket in the file system: confined away
        max_restarts=0,  # the service's own attempts resume from the last checkpoint
        monitor_interval=0.1,
    )
    host = _Host(run, [ours for ours, _ in pipes])
    failure: ChildFailedError | None = None
    with _same_signals(), host:
        try:
            elastic_launch(config, member)(
                spec.model_dump_json(),
                str(run.input),
                str(run.state),
                json.dumps(dict(run.lineage)),
                max(1, torch.get_num_threads() // spec.devices),
                [theirs for _, theirs in pipes],
            )
        except ChildFailedError as error:
            failure = error
    for ours, theirs in pipes:
        ours.close()
        theirs.close()
    return host.outcome(failure)


def _require_loopback() -> None:
    try:
        socket.create_server((HERE, 0)).close()
    except OSError as error:
        raise StiefelError(
            f"this worker gives its jobs no loopback network: {error.strerror}",
            code="no_loopback",
            fix="set devices to 1, or run the worker where it may make network namespaces",
            field="/devices",
        ) from error


@contextmanager
def _same_signals() -> Iterator[None]:
    """The launcher takes over signals and leaves them so; give them back."""
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Host:
    """Answers the processes on behalf of the run while the launcher waits for them."""

    def __init__(self, run: Run, connections: Sequence[Connection]) -> None:
        self._run, self._connections = run, list(connections)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="members", daemon=True)
        self._stopped: StopRequested | None = None
        self._end: Message | None = None
        self._error: Message | None = None

    def __enter__(self) -> _Host:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def outcome(self, failure: BaseException | None) -> Outcome:
        """What process 0 handed over, or the error that ended the run."""
        if self._stopped is not None and self._end is None:
            raise self._stopped
        if self._error is not None:
            raise revived(self._error) from failure
        if self._end is None:
            raise RuntimeError(f"a training process died: {failure}") from failure
        deliveries = [
            Delivery(item["name"], item["kind"], tuple(Path(part) for part in item["parts"]))
            for item in self._end["deliveries"]
        ]
        return Outcome(deliveries, self._end["metrics"])

    def _serve(self) -> None:
        while True:
            ready = [c for c in wait(self._connections, timeout=0.1) if isinstance(c, Connection)]
            for connection in ready:
                try:
                    self._hear(connection, json.loads(connection.recv_bytes()))
                except (EOFError, OSError):
                    self._connections.remove(connection)
            if not ready and self._over.is_set():
                return

    def _hear(self, connection: Connection, message: Message) -> None:
        kind, run = message.pop("type"), self._run
        if kind == "progress":
            run.progress(message.pop("done"), message.pop("total"), **message)
        elif kind == "metrics":
            run.metrics(message["step"], message["values"])
        elif kind == "event":
            run.event(message["event"], message["data"])
        elif kind == "look":
            connection.send_bytes(json.dumps(run.stop_requested).encode())
        elif kind == "memory":
            connection.send_bytes(json.dumps(self._memory(message["bytes"])).encode())
        elif kind == "checkpoint":
            connection.send_bytes(json.dumps(self._checkpoint(message["step"])).encode())
        elif kind == "finished":
            self._end = message
        elif kind == "error":
            self._error = self._error or message

    def _memory(self, nbytes: int) -> Message | None:
        try:
            self._run.expect_memory(nbytes)
        except TooLargeError as error:
            return described(error)
        return None

    def _checkpoint(self, step: int) -> bool:
        try:
            self._run.checkpoint(step)
        except StopRequested as request:
            self._stopped = request
        return self._stopped is not None
