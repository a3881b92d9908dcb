"""Peak memory of a conversion does not grow with the checkpoint.

    python benchmarks/memory.py [--gigabytes 1 6] [--side 512] [--every 8] [--out memory]

Checkpoints of equal float32 matrices, of which every eighth is projected and the rest copied, go
through a fresh embedded service each: API, worker, isolated child. The figures are the kernel's own
high-water marks (VmHWM). The bar: child and supervisor together within 10 % between the sizes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from stage import Service, checkpoint, command_line, publish, service

BAR = 0.10


def main() -> int:
    options = _options()
    rows = []
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory() as folder, service(Path(folder), "embedded") as made:
            rows.append(_convert(made, gigabytes, options))
    sums = [row["child_mib"] + row["worker_mib"] for row in rows]
    growth = max(sums) / min(sums) - 1
    title = "Peak memory of a conversion"
    command = command_line()
    publish(options.out, title, command, rows, growth=round(growth, 4), bar=BAR)
    return int(growth > BAR)


def _convert(made: Service, gigabytes: float, options: argparse.Namespace) -> dict[str, Any]:
    made.start_api()
    worker = made.start_worker()
    count = int(gigabytes * 1e9) // (4 * options.side**2)
    size, content = checkpoint(count, options.side, one_in=options.every)
    artifact = made.upload("model.safetensors", content, size)
    spec = {"method": "project.unitary", "input": artifact, "include": ["chosen.*"]}
    job = made.post("/v1/jobs", {"spec": spec})
    with Marks() as marks:
        child = _child(made, job["id"])
        marks.watch(child)
        done = made.wait(job["id"])
    assert done["status"] == "succeeded", done
    api = made.processes[0].pid
    return {
        "checkpoint_gb": round(size / 1e9, 3),
        "tensors": count,
        "matrix": f"{options.side} x {options.side} float32",
        "child_mib": round(marks.peaks[child] / 2**20, 1),
        "worker_mib": round(high_water(worker.pid) / 2**20, 1),
        "api_mib": round(high_water(api) / 2**20, 1),
        "projected": _projected(made, done),
    }


def _projected(made: Service, done: dict[str, Any]) -> int:
    report = made.client.get(f"/v1/jobs/{done['id']}/files/certificate.json", follow_redirects=True)
    return sum(tensor["role"] == "projected" for tensor in report.json()["tensors"])


def _child(made: Service, job_id: str) -> int:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        for event in made.get(f"/v1/jobs/{job_id}/events")["data"]:
            if event["type"] == "job.process":
                pid: int = event["data"]["pid"]
                return pid
        time.sleep(0.05)
    raise TimeoutError(job_id)


class Marks:
    """Reads high-water marks until the processes are gone."""

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Marks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def watch(self, pid: int) -> None:
        """Add a process."""
        self.peaks[pid] = 0

    def _read(self) -> None:
        while not self._ended.wait(0.01):
            for pid in list(self.peaks):
                self.peaks[pid] = max(self.peaks[pid], high_water(pid))


def high_water(pid: int) -> int:
    """Most bytes that a process was ever resident with; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 6])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--out", default="memory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
