"""One process of a training that runs in several: what it is started with, and what it says.

It speaks JSON over a pipe with the process that launched it (:mod:`stiefel.methods.several`).
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stiefel.errors import InvalidInputError, StiefelError, StopRequested

Message = dict[str, Any]
PATIENCE = timedelta(minutes=30)  # one process evaluates while the others wait
#: Between two words with the host that can wait. A step of a small network takes a few
#: milliseconds, and a question to the host and its answer about one.
PAUSE_S = 0.05


class _Told:
    """The run as process 0 sees it; see :class:`stiefel.run.Run`."""

    def __init__(
        self, connection: Connection, source: Path, state: Path, lineage: Mapping[str, Any]
    ) -> None:
        self._connection = connection
        self._looked = self._reported = -PAUSE_S
        self.input, self.state, self.lineage = source, state, lineage

    @property
    def stop_requested(self) -> bool:
        if time.monotonic() < self._looked + PAUSE_S:
            return False
        self._looked = time.monotonic()
        self.tell("look")
        return bool(json.loads(self._connection.recv_bytes()))

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        if time.monotonic() < self._reported + PAUSE_S and done < total:
            return
        self._reported = time.monotonic()
        self.tell("progress", done=done, total=total, unit=unit, bytes_done=bytes_done)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.tell("metrics", step=step, values=dict(values))

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        self.tell("event", event=type, data=dict(data))

    def expect_memory(self, nbytes: int) -> None:
        self.tell("memory", bytes=nbytes)
        if (refusal := json.loads(self._connection.recv_bytes())) is not None:
            raise revived(refusal)

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


def member(
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
    outcome = None
    try:
        _join(spec)
        outcome = METHODS[spec.method].run(spec, run)
    except StopRequested:
        pass  # the host knows, and every process stops at the same step
    except (StiefelError, MemoryError, torch.OutOfMemoryError) as error:
        run.tell("error", **described(error))
        raise
    if rank == 0 and outcome is not None:
        deliveries = [
            {"name": item.name, "kind": item.kind, "parts": [str(part) for part in item.parts]}
            for item in outcome.deliveries
        ]
        run.tell("finished", deliveries=deliveries, metrics=dict(outcome.metrics))
    _part()


def _part() -> None:
    dist.barrier()  # no process may leave while another still talks to it
    # A wrapper of DistributedDataParallel that outlives the group can wait for its threads forever.
    gc.collect()
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


def described(error: BaseException) -> Message:
    """The error as it goes through the pipe; :func:`revived` turns it back."""
    if isinstance(error, StiefelError):
        told = {name: getattr(error, name) for name in ("code", "fix", "tensor", "field")}
        return {"kind": type(error).__name__, "detail": error.detail, **told}
    return {"kind": "MemoryError", "detail": str(error)}


def revived(message: Message) -> Exception:
    """The error that a process described."""
    from stiefel import errors

    kind, detail = message.pop("kind"), message.pop("detail")
    if kind == "MemoryError":
        return MemoryError(detail)
    found = getattr(errors, kind, StiefelError)
    error: StiefelError = found(detail, **message)
    return error
