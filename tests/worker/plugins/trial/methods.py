"""Each act is one way in which a job can go."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stiefel.errors import InvalidInputError
from stiefel.methods.protocol import Delivery, Method, Outcome, Run
from trial.specs import Trial


def run(spec: Trial, run: Run) -> Outcome:
    return ACTS[spec.act](spec, run)


def count(spec: Trial, run: Run) -> Outcome:
    """Append one byte per step; the file tells how often steps were repeated."""
    body = run.state / "shards" / "body.bin"
    body.parent.mkdir(exist_ok=True)
    done = body.stat().st_size if body.exists() else 0
    run.event("trial.began", {"done": done, "at": time.time()})
    with body.open("ab") as file:
        for step in range(done, spec.steps):
            time.sleep(spec.step_s)
            file.write(bytes([step % 256]))
            file.flush()
            run.metrics(step, {"step": step})
            run.progress(step + 1, spec.steps, unit="step", bytes_done=step + 1)
            run.checkpoint(step + 1)
    head = run.state / "head.bin"
    head.write_bytes(b"head:")
    lineage = run.state / "lineage.json"
    lineage.write_text(json.dumps(dict(run.lineage)))
    files = [Delivery("counted.bin", "text", (head, body))]
    files.append(Delivery("lineage.json", "json", (lineage,)))
    return Outcome(files, {"steps": spec.steps})


def copy(spec: Trial, run: Run) -> Outcome:
    return Outcome([Delivery("copy.bin", "text", (run.input / "file",))])


def rotate(spec: Trial, run: Run) -> Outcome:
    """Keep one file of state at a time, as a training run does."""
    numbers = sorted(int(path.stem) for path in run.state.glob("*.bin"))
    done = numbers[-1] if numbers else 0
    run.event("trial.began", {"done": done, "files": len(numbers)})
    for step in range(done + 1, spec.steps + 1):
        (run.state / f"{step}.bin").write_bytes(bytes([step]) * 100_000)
        (run.state / f"{step - 1}.bin").unlink(missing_ok=True)
        run.checkpoint(step)
        time.sleep(spec.step_s)
    return Outcome([Delivery("last.bin", "text", (run.state / f"{spec.steps}.bin",))])


def refuse(spec: Trial, run: Run) -> Outcome:
    raise InvalidInputError(
        "blocks.0.weight holds NaN.", code="non_finite", tensor="blocks.0.weight", fix="Mend it."
    )


def crash(spec: Trial, run: Run) -> Outcome:
    raise RuntimeError(spec.text)


def leave(spec: Trial, run: Run) -> Outcome:
    os._exit(3)


def abort(spec: Trial, run: Run) -> Outcome:
    os.kill(os.getpid(), signal.SIGABRT)
    return Outcome([])


def eat(spec: Trial, run: Run) -> Outcome:
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1 << 10)) * (32 << 10))
        time.sleep(0.02)


def gulp(spec: Trial, run: Run) -> Outcome:
    torch.empty(1 << 44, dtype=torch.uint8)
    return Outcome([])


def overfill(spec: Trial, run: Run) -> Outcome:
    """End as torch does when the memory of a GPU is used up."""
    raise torch.OutOfMemoryError(spec.text)


def stuck(spec: Trial, run: Run) -> Outcome:
    """Hold the interpreter's lock in C code, deaf to every request."""
    run.event("trial.began", {"pid": os.getpid()})
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)
    return Outcome([])


def idle(spec: Trial, run: Run) -> Outcome:
    run.event("trial.began", {"pid": os.getpid()})
    while True:
        time.sleep(0.1)


def family(spec: Trial, run: Run) -> Outcome:
    """Start a grandchild, then wait."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    run.event("trial.began", {"pid": os.getpid(), "grandchild": grandchild.pid})
    while True:
        time.sleep(0.1)


def babble(spec: Trial, run: Run) -> Outcome:
    run._connection.send_bytes(b"\x80\x04not json")  # type: ignore[attr-defined]
    time.sleep(600)
    return Outcome([])


def strange(spec: Trial, run: Run) -> Outcome:
    """Report numbers and texts that JSON columns do not take."""
    run.metrics(1, {"loss": float("nan")})
    run.event("trial.began", {"worst": float("-inf"), "text": "a\x00b"})
    return Outcome([], {"final": float("inf")})


def smuggle(spec: Trial, run: Run) -> Outcome:
    """Deliver a link to somebody else's file."""
    link = run.state / "link"
    link.symlink_to(spec.text)
    return Outcome([Delivery("stolen.txt", "text", (link,))])


def probe(spec: Trial, run: Run) -> Outcome:
    """Try what a child must not be able to do; the report says what succeeded."""
    found = {
        "environment": dict(os.environ),
        "connect": attempt(lambda: socket.create_connection(("127.0.0.1", int(spec.text)), 1)),
        "bind": attempt(lambda: socket.socket().bind(("127.0.0.1", 0))),
        "read_data_dir": attempt(lambda: list(run.state.parents[2].iterdir())),
        "read_passwords": attempt(lambda: Path("/etc/shadow").read_bytes()),
        "read_parent": attempt(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
        "signal_parent": attempt(lambda: os.kill(os.getppid(), 0)),
        "write_code": attempt(lambda: Path(torch.__file__).with_name("x").write_text("x")),
        "write_state": attempt(lambda: (run.state / "mine").write_text("x")),
        "threads": torch.get_num_threads(),
        "session_leader": os.getsid(0) == os.getpid(),
    }
    report = run.state / "report.json"
    report.write_text(json.dumps(found))
    return Outcome([Delivery("report.json", "json", (report,))])


def snoop(spec: Trial, run: Run) -> Outcome:
    """Leave files of one's own, then try to get at those of the neighbour that ``text`` names."""
    mine = {"state": run.state / "mine", "shared": Path("/dev/shm/of-a-job")}
    for path in mine.values():
        path.write_text("secret")
    run.event("trial.began", {"scratch": str(run.state.parent), "pid": os.getpid()})
    if not spec.text:
        while True:
            time.sleep(0.1)
    theirs, pid = spec.text.split(":")
    mine["shared"].unlink()
    other = Path(theirs)
    found = {
        "list": attempt(lambda: list(other.iterdir())),
        "read_input": attempt((other / "input" / "file").read_bytes),
        "read_state": attempt((other / "state" / "mine").read_bytes),
        "write_state": attempt(lambda: (other / "state" / "planted").write_text("x")),
        "read_environment": attempt(Path(f"/proc/{pid}/environ").read_bytes),
        "read_memory": attempt(Path(f"/proc/{pid}/mem").read_bytes),
        "through_its_root": attempt(Path(f"/proc/{pid}/root{other}/state/mine").read_bytes),
        "signal": attempt(lambda: os.kill(int(pid), 0)),
        "shared_memory": attempt(mine["shared"].read_bytes),
        "own_state": attempt(mine["state"].read_bytes),
    }
    report = run.state / "report.json"
    report.write_text(json.dumps(found))
    return Outcome([Delivery("report.json", "json", (report,))])


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


ACTS: dict[str, Callable[[Trial, Run], Outcome]] = {
    act.__name__: act
    for act in (count, copy, rotate, refuse, crash, leave, abort, eat, gulp, stuck, idle)
} | {act.__name__: act for act in (family, babble, strange, smuggle, probe, snoop, overfill)}
METHOD = Method("test.trial", Trial, run)
