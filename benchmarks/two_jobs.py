"""Two trainings at once on one worker: what each costs the other beyond the cores they share.

    python benchmarks/two_jobs.py [--epochs 60] [--rounds 3] [--append] [--out two_jobs]

An embedded service with one worker of concurrency 2 gives every job one thread. A round trains the
same job alone, then two of them posted at once; the time of a job is from POST to succeeded. The
bar: together at most 1.10 times alone, on a machine of at least two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stage import Service, publish, service
from trainings import arrays, earlier, uploaded

BAR = 1.10


def main() -> int:
    options = _options()
    rows = earlier(options.out, options.append)
    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder), "embedded", worker_threads=1) as made,
    ):
        made.start_api()
        made.start_worker(concurrency=2)
        data = uploaded(made, arrays())
        for _ in range(options.rounds):
            rows.append(_round(made, data, options, number=len(rows)))
    ratio = round(statistics.median(row["together/alone"] for row in rows), 4)
    command = " ".join(["python", *sys.argv])
    publish(options.out, "Two trainings on one worker", command, rows, median_ratio=ratio, bar=BAR)
    return int(ratio > BAR)


def _round(
    made: Service, data: dict[str, Any], options: argparse.Namespace, *, number: int
) -> dict[str, Any]:
    def job(seed: int) -> float:
        spec = {
            "method": "train.dense",
            "network": {"family": "mlp", "hidden": [500, 500, 500]},
            "data": data,
            "epochs": options.epochs,
            "device": "cpu",
            "seed": seed,
        }
        began = time.perf_counter()
        done = made.wait(made.post("/v1/jobs", {"spec": spec})["id"])
        assert done["status"] == "succeeded", done
        return time.perf_counter() - began

    alone = job(3 * number)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(job, (3 * number + 1, 3 * number + 2))
    return {
        "round": number + 1,
        "threads_per_job": 1,
        "alone_s": round(alone, 2),
        "together_s": f"{one:.2f} {two:.2f}",
        "together/alone": round((one + two) / 2 / alone, 4),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--out", default="two_jobs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
