"""Two trainings at once on one worker: what each costs the other beyond the cores they share.

    python benchmarks/two_jobs.py [--epochs 40] [--rounds 3] [--append] [--out two_jobs]

An embedded service with one worker of concurrency 2 gives every job one thread. A round trains the
same job alone, then two of them posted at once; the time of a job is from POST to succeeded. Then
the same loop in scripts, without any service: one alone, then two at once, which shows what the
machine's two cores take from each other (cache, memory, clock). The bar: jobs together at most 1.10
times alone; ``beyond`` is that ratio over the scripts' own, ``service_cpu_s`` what API and worker
computed while the two jobs ran.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from stage import PYTHON, Service, command_line, publish, service
from trainings import arrays, bare_seconds, earlier, job_seconds, network, uploaded

BAR = 1.10


def main() -> int:
    options = _options()
    rows = earlier(options.out, options.append)
    if options.bare:
        _bare(Path(options.bare), options)
        return 0
    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder), "embedded", worker_threads=1) as made,
    ):
        made.start_api()
        made.start_worker(concurrency=2)
        content = arrays()
        source = made.folder / "input"
        source.mkdir()
        (source / "train").write_bytes(content)
        data = uploaded(made, content)
        for _ in range(options.rounds):
            rows.append(_round(made, data, source, options, number=len(rows)))
    ratio = round(statistics.median(row["together/alone"] for row in rows), 4)
    beyond = round(statistics.median(row["beyond"] for row in rows), 4)
    command = command_line()
    title = "Two trainings on one worker"
    publish(options.out, title, command, rows, median_ratio=ratio, bar=BAR, median_beyond=beyond)
    return int(ratio > BAR)


def _round(
    made: Service, data: dict[str, Any], source: Path, options: argparse.Namespace, *, number: int
) -> dict[str, Any]:
    def job(seed: int) -> float:
        return job_seconds(made, network(options.epochs, data, seed=seed))

    def script(seed: int) -> float:
        command = [PYTHON, __file__, "--bare", str(source), "--seed", str(seed)]
        command += ["--epochs", str(options.epochs)]
        env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the worker sets it
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return float(done.stdout.split()[-1])

    took: dict[str, float] = {}
    busy = 0.0
    for name, run in (("job", job), ("script", script)):
        took[f"{name}_alone"] = run(3 * number)
        busy -= _cpu(made) if name == "job" else 0.0
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(run, (3 * number + 1, 3 * number + 2)))
        busy += _cpu(made) if name == "job" else 0.0
        took[f"{name}_together"] = sum(both) / 2
    jobs = took["job_together"] / took["job_alone"]
    scripts = took["script_together"] / took["script_alone"]
    return {
        "round": number + 1,
        "epochs": options.epochs,
        **{f"{name}_s": round(seconds, 2) for name, seconds in took.items()},
        "together/alone": round(jobs, 4),
        "scripts": round(scripts, 4),
        "beyond": round(jobs / scripts, 4),
        "service_cpu_s": round(busy, 2),
    }


def _cpu(made: Service) -> float:
    """Seconds that API and worker have computed so far, without the jobs."""
    times = [psutil.Process(process.pid).cpu_times() for process in made.processes]
    return sum(time.user + time.system for time in times)


def _bare(source: Path, options: argparse.Namespace) -> None:
    """The loop without a service, on one thread."""
    import torch

    torch.set_num_threads(1)
    print(bare_seconds(source, network(options.epochs, {}, seed=options.seed)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--out", default="two_jobs")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
