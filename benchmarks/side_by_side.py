"""Timing side by side and result files shared by the unitary benchmarks.

Candidates run in turn, each in a process of its own, so that no caches and no heap are shared:
after another candidate has freed a few large blocks, glibc no longer returns memory to the system,
and temporaries of 32 MiB cost a third of what they cost in a program that has only this candidate.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def apart(
    builds: Mapping[str, Callable[[], Callable[[], Any]]], *, seconds: float, rounds: int = 50
) -> dict[str, float]:
    """Median milliseconds of each candidate, in turn, each built and called in its own process.

    A turn of a candidate faster than 50 ms is eight calls to warm its caches (the third level of
    an AMD processor fills only as lines are dropped from the second) and the median of four more;
    of a slower one, one call. Each gets a share of ``seconds``, but at least three turns after
    the first. Call this before anything has run on several threads: they do not survive a fork.
    """
    context = multiprocessing.get_context("fork")
    children: dict[str, tuple[Any, Connection]] = {}
    for name, build in builds.items():
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(build, theirs), daemon=True)
        child.start()
        children[name] = (child, ours)
    times: dict[str, list[float]] = {name: [] for name in builds}
    spent = dict.fromkeys(builds, 0.0)
    for index in range(rounds + 1):
        for name, (_, pipe) in children.items():
            if index <= 3 or spent[name] < seconds / len(builds):
                pipe.send(True)
                taken, turn = pipe.recv()
                if index:
                    times[name].append(taken)
                    spent[name] += turn
    for child, pipe in children.values():
        pipe.send(False)
        child.join()
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def _serve(build: Callable[[], Callable[[], Any]], pipe: Connection) -> None:
    call, fast = build(), False
    while pipe.recv():
        start = time.perf_counter()
        for _ in range(8 if fast else 0):
            call()
        taken = sorted(_seconds(call) for _ in range(4 if fast else 1))
        fast = taken[0] < 0.05
        pipe.send((statistics.median(taken), time.perf_counter() - start))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def environment() -> dict[str, Any]:
    """Device, threads and versions that a figure depends on."""
    packages = {}
    for name in ("torch", "numba", "numpy", "geotorch"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), cpu)
    arguments = list(sys.argv[1:])
    if "--reference" in arguments:
        arguments[arguments.index("--reference") + 1] = "PATH"
    return {
        "command": "python " + shlex.join(["benchmarks/" + Path(sys.argv[0]).name, *arguments]),
        "device": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": packages,
    }


def write(
    name: str,
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: str = "",
    same: Sequence[str] = (),
) -> None:
    """Write ``results/<name>.json`` and a table of the same rows as ``results/<name>.md``.

    With ``same``, rows of an earlier run stay unless a new row equals them in these columns, and
    the commands of all runs are listed.
    """
    RESULTS.mkdir(exist_ok=True)
    env = environment()
    if same:
        rows = _merged(RESULTS / f"{name}.json", env, rows, same)
    record = {"environment": env, "rows": list(rows)}
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    columns = [key for key in rows[0] if not isinstance(rows[0][key], list)]
    lines = [
        f"# {title}",
        "",
        *(f"`{command}`  " for command in env["command"].split("\n")),
        "",
        f"{env['device']}, {env['threads']} threads;",
    ]
    lines += [", ".join(f"{k} {v}" for k, v in env["packages"].items()) + ".", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |")
    if notes:
        lines += ["", notes]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _merged(
    path: Path, env: dict[str, Any], rows: Sequence[Mapping[str, Any]], same: Sequence[str]
) -> list[Mapping[str, Any]]:
    if not path.exists():
        return list(rows)
    record = json.loads(path.read_text(encoding="utf-8"))
    commands = record["environment"]["command"].split("\n")
    env["command"] = "\n".join(dict.fromkeys([*commands, env["command"]]))
    new = {tuple(row[key] for key in same) for row in rows}
    old = [row for row in record["rows"] if tuple(row[key] for key in same) not in new]
    return [*old, *rows]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def reference(path: str | None) -> Any:
    """Import the authors' ``projunn.utils`` from a checkout, or return None."""
    if path is None:
        return None
    sys.path.insert(0, path)
    import importlib

    return importlib.import_module("projunn.utils")


REFERENCE_HELP = (
    "checkout of github.com/facebookresearch/projUNN with pull request 1 (main cannot be "
    "imported: it holds merge-conflict markers); without it the authors' columns are empty"
)
