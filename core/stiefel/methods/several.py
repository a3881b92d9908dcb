"""One training run in several processes, started by torch's elastic launcher.

The process that was asked to run the method launches one process per device and stays the only
one that knows the host: process 0 reports to it over a pipe, in JSON, and the others are silent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stiefel.errors import InvalidInputError, StiefelError, StopRequested, TooLargeError
from stiefel.methods.protocol import Delivery, Outcome
from stiefel.run import Run
from stiefel.specs.training import TrainingSpec

Message = dict[str, Any]
PATIENCE = timedelta(minutes=30)  # one process evaluates while the others wait
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
            elastic_launch(config, _member)(
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
            raise _revived(self._error) from failure
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
            return _described(error)
        return None

    def _checkpoint(self, step: int) -> bool:
        try:
            self._run.checkpoint(step)
        except StopRequested as request:
            self._stopped = request
        return self._stopped is not None


class _Told:
    """The run as process 0 sees it; see :class:`stiefel.run.Run`."""

    def __init__(
        self, connection: Connection, source: Path, state: Path, lineage: Mapping[str, Any]
    ) -> None:
        self._connection = connection
        self.input, self.state, self.lineage = source, state, lineage

    @property
    def stop_requested(self) -> bool:
        self.tell("look")
        return bool(json.loads(self._connection.recv_bytes()))

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        self.tell("progress", done=done, total=total, unit=unit, bytes_done=bytes_done)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.tell("metrics", step=step, values=dict(values))

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        self.tell("event", event=type, data=dict(data))

    def expect_memory(self, nbytes: int) -> None:
        self.tell("memory", bytes=nbytes)
        if (refusal := json.loads(self._connection.recv_bytes())) is not None:
            raise _revived(refusal)

    def checkpoint(self, step: int) -> None:
        self.tell("checkpoint", step=step)
        if json.loads(self._connection.recv_bytes()):
            raise StopRequested(f"stopped at step {step}")

    def tell(self, kind: str, /, **content: Any) -> None:
        self._connection.send_bytes(json.dumps({"type": kind, **content}).encode())


class _Silent(_Told):
    """The run as the other processes see it: they hear of a stop from process 0."""

    stop_requested = False

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        """Say nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Say nothing."""

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        """Say nothing."""

    def expect_memory(self, nbytes: int) -> None:
        """Process 0 says so for all."""

    def checkpoint(self, step: int) -> None:
        """Process 0 has written it."""


def _member(
    spec_text: str,
    source: str,
    state: str,
    lineage: str,
    threads: int,
    connections: Sequence[Connection],
) -> None:
    """One of the processes: join the others and run the method."""
    from stiefel.methods import METHODS
    from stiefel.specs import parse_spec

    rank = int(os.environ["RANK"])
    torch.set_num_threads(threads)
    kind = _Silent if rank else _Told
    run = kind(connections[rank], Path(source), Path(state), json.loads(lineage))
    spec = parse_spec(json.loads(spec_text))
    try:
        _join(spec)
        outcome = METHODS[spec.method].run(spec, run)
    except StopRequested:
        return
    except (StiefelError, MemoryError, torch.OutOfMemoryError) as error:
        run.tell("error", **_described(error))
        raise
    if rank == 0:
        deliveries = [
            {"name": item.name, "kind": item.kind, "parts": [str(part) for part in item.parts]}
            for item in outcome.deliveries
        ]
        run.tell("finished", deliveries=deliveries, metrics=dict(outcome.metrics))
    dist.barrier()  # no process may leave while another still talks to it
    dist.destroy_process_group()


def _join(spec: Any) -> None:
    cuda = spec.device != "cpu" and torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < spec.devices:
        raise InvalidInputError(
            f"this worker has {torch.cuda.device_count()} CUDA device(s), not {spec.devices}",
            code="no_such_device",
            fix='lower devices, or set device to "cpu"',
            field="/devices",
        )
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # All processes are on this machine, where its name may not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)


def _described(error: BaseException) -> Message:
    if isinstance(error, StiefelError):
        told = {name: getattr(error, name) for name in ("code", "fix", "tensor", "field")}
        return {"kind": type(error).__name__, "detail": error.detail, **told}
    return {"kind": "MemoryError", "detail": str(error)}


def _revived(message: Message) -> Exception:
    """The error that a process described."""
    from stiefel import errors

    kind, detail = message.pop("kind"), message.pop("detail")
    if kind == "MemoryError":
        return MemoryError(detail)
    found = getattr(errors, kind, StiefelError)
    error: StiefelError = found(detail, **message)
    return error
