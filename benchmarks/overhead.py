"""What the service costs on top of the work itself.

    python benchmarks/overhead.py [--gigabytes 1] [--side 1024] [--rounds 3] [--out overhead]

The same checkpoint, alternately: through a running embedded service (from POST to succeeded, so
with staging, isolation, checkpoints per tensor, certificate and the commit to the store), and
through a bare script in one process that reads, converts with the same kernel, hashes and writes
the same tensors. The bar: a median ratio of at most 1.15.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stage import PYTHON, Service, checkpoint, command_line, publish, service

BAR = 1.15


def main() -> int:
    options = _options()
    if options.bare:
        _bare(Path(options.bare[0]), Path(options.bare[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), "embedded") as made:
        rows = _measure(made, options)
    ratios = [row["ratio"] for row in rows]
    ratio = round(statistics.median(ratios), 4)
    title = "Overhead of the service"
    publish(options.out, title, command_line(), rows, median_ratio=ratio, bar=BAR)
    return int(ratio > BAR)


def _measure(made: Service, options: argparse.Namespace) -> list[dict[str, Any]]:
    made.start_api()
    made.start_worker()
    count = int(options.gigabytes * 1e9) // (4 * options.side**2)
    size, content = checkpoint(count, options.side)
    source, target = made.folder / "source.safetensors", made.folder / "target.safetensors"
    with source.open("wb") as out:
        out.writelines(content)
    with source.open("rb") as file:
        artifact = made.upload("model.safetensors", iter(lambda: file.read(2**22), b""), size)
    rows = []
    for number in range(options.rounds):
        if number % 2 == 0:
            served = _service(made, artifact, number)
            bare = _script(source, target)
        else:
            bare = _script(source, target)
            served = _service(made, artifact, number)
        rows.append(
            {
                "round": number + 1,
                "checkpoint_gb": round(size / 1e9, 3),
                "matrices": f"{count} of {options.side} x {options.side} float32",
                "service_s": round(served, 2),
                "bare_s": round(bare, 2),
                "ratio": round(served / bare, 4),
            }
        )
    return rows


def _service(made: Service, artifact: str, seed: int) -> float:
    """Seconds from POST to succeeded; another seed makes another certificate each time."""
    began = time.perf_counter()
    spec = {"method": "project.unitary", "input": artifact, "seed": seed}
    done = made.wait(made.post("/v1/jobs", {"spec": spec})["id"])
    assert done["status"] == "succeeded", done
    return time.perf_counter() - began


def _script(source: Path, target: Path) -> float:
    """Seconds of the conversion alone: importing torch is not counted against the service."""
    command = [PYTHON, __file__, "--bare", str(source), str(target)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the worker sets it for its children
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


def _bare(source: Path, target: Path) -> None:
    """Read, convert, hash, write: what anybody would write by hand, with the service's kernel."""
    import torch
    from safetensors import safe_open

    from stiefel.linalg.truncated_svd import thin_svd

    began = time.perf_counter()
    digests = {}
    with safe_open(source, "pt") as tensors, target.open("wb") as out:
        for name in tensors.keys():  # noqa: SIM118 - not a dictionary
            svd = thin_svd(tensors.get_tensor(name).double())
            data = (svd.U @ svd.Vh).to(torch.float32).numpy().tobytes()
            digests[name] = hashlib.sha256(data).hexdigest()
            out.write(data)
    print(time.perf_counter() - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="overhead")
    parser.add_argument("--bare", nargs=2, metavar=("SOURCE", "TARGET"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
