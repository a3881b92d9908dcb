"""The child process of one attempt: it computes, and tells its supervisor.

It sees its scratch folder and one pipe. Everything it says may be shown to a client except the
traceback of an unforeseen error, which goes to the worker's log alone.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stiefel.errors import StiefelError, StopRequested
from stiefel_worker import compiled, sandbox
from stiefel_worker.order import Order
from stiefel_worker.reports import ChildRun, Message


def main(connection: Connection, text: str) -> None:
    """Entry point in the forked process."""
    began = time.time()
    order = Order.decode(text)
    os.setsid()
    _detach_from_fork_server()
    several = order.spec.get("devices", 1) != 1
    sandbox.enter(
        order.input.parent, private=order.private, data_limit=order.data_limit, loopback=several
    )
    _settle(order)
    run = ChildRun(order, connection, _lineage(order))
    run.send({"type": "started", "pid": os.getpid(), "at": began})
    run.send(_execute(order, run))


def rehearse(connection: Connection, scratch: str, private: list[str]) -> None:
    """Entry point of a child without a job: report how well the sandbox holds, and the methods."""
    from stiefel_worker.warm import METHODS, TORCH_VERSION

    confinement = sandbox.enter(Path(scratch), private=private, data_limit=None)
    report = {**asdict(confinement), "methods": sorted(METHODS), "torch": TORCH_VERSION}
    with suppress(BrokenPipeError):  # a worker that stops meanwhile does not hear of it
        connection.send_bytes(encode(report))


def _execute(order: Order, run: ChildRun) -> Message:
    """Run the method; every way it can end becomes one message."""
    try:
        return _finished(order, run)
    except StopRequested:
        return {"type": "stopped"}
    except StiefelError as error:
        return _failed(error.code, error.detail, error.blame, error.fix, error.tensor, error.field)
    except MemoryError as error:
        return _out_of_memory(error)
    except Exception as error:
        if _is_out_of_memory(error):
            return _out_of_memory(error)
        sys.stderr.write(f"job {order.job_id} attempt {order.attempt}\n{traceback.format_exc()}")
        sys.stderr.flush()
        detail = f"The method stopped on an unexpected {type(error).__name__}."
        fix = "Report the job id to the operator; the worker's log has the details."
        return _failed("internal_error", detail, "system", fix)


def _finished(order: Order, run: ChildRun) -> Message:
    from stiefel.specs import parse_spec
    from stiefel_worker.warm import METHODS

    spec = parse_spec(order.spec)
    outcome = METHODS[spec.method].run(spec, run)
    deliveries = [
        {"name": item.name, "kind": item.kind, "parts": [str(part) for part in item.parts]}
        for item in outcome.deliveries
    ]
    return {"type": "finished", "deliveries": deliveries, "metrics": dict(outcome.metrics)}


def _failed(
    code: str,
    detail: str,
    blame: str,
    fix: str | None = None,
    tensor: str | None = None,
    field: str | None = None,
) -> Message:
    error = {"code": code, "detail": detail, "fix": fix, "tensor": tensor, "field": field}
    return {"type": "failed", "blame": blame, **error}


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    refused = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and refused
    )


def _out_of_memory(error: BaseException) -> Message:
    gc.collect()
    first_line = (str(error).splitlines() or [""])[0]
    detail = f"The method ran out of memory. {first_line}".strip()
    fix = "Choose a smaller job (fewer or smaller tensors, a smaller batch) or a larger worker."
    return _failed("out_of_memory", detail, "resource", fix)


def _detach_from_fork_server() -> None:
    """Close the ways back to the fork server: it ends with the worker and forks for it alone."""
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None
    server._forkserver_address = None


def _settle(order: Order) -> None:
    """Point temporary files, caches and threads at what this job may use."""
    import torch

    temporary = order.input.parent / "tmp"
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME"):
        os.environ[name] = str(temporary)
    tempfile.tempdir = str(temporary)
    compiled.lend(temporary / "compiled")
    if order.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.chdir(order.input.parent)
    torch.set_num_threads(order.threads)


def _lineage(order: Order) -> Mapping[str, Any]:
    import torch

    cuda = order.device != "cpu" and torch.cuda.is_available()
    return {
        "job": order.job_id,
        "input": order.inputs,
        "spec": order.spec,
        "seed": order.spec.get("seed"),
        "code": order.code,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": order.threads,
        },
    }


def encode(message: Message) -> bytes:
    """The form of every message in either direction."""
    return json.dumps(message).encode()
