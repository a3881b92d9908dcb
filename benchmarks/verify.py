"""Verification: its time against a plain read of the file, and flipped bits found.

    python benchmarks/verify.py                         a synthetic checkpoint
    python benchmarks/verify.py --file F --certificate C [--input ORIGINAL]
    python benchmarks/verify.py --trials 10000          flips on a small file

Each time is the median of interleaved rounds, once with the file in the page cache and once
read from the disk (its pages are dropped before each task); the plain read is 8 MiB at a
time. sha256 of the same bytes is shown beside, as the floor of any
check of a digest. The ratio depends on how much of the file is converted and on the sides
of the matrices: the defect of an n x p matrix takes n p^2 operations in float64.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stiefel_client.verify import verify

BLOCK = 8 * 2**20


def main() -> None:
    options = _options()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"python {platform.python_version()}, numpy {np.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.file:
            targets = [(options.file, options.certificate, options.original, "the given file")]
        else:
            targets = [_synthetic(Path(folder), side, options.megabytes) for side in (384, 1024)]
        for file, certificate, original, title in targets:
            for cold in (False, True):
                _time(file, certificate, original, title, options.rounds, cold=cold)
        _flips(Path(folder), options.trials)


def _time(
    file: Path,
    certificate: Path | None,
    original: Path | None,
    title: str,
    rounds: int,
    *,
    cold: bool,
) -> None:
    tasks: dict[str, Callable[[], Any]] = {
        "plain read": lambda: _read(file),
        "sha256": lambda: _read(file, hashlib.sha256()),
        "verify": lambda: _verified(file, certificate, None),
    }
    if original:
        tasks["verify with input"] = lambda: _verified(file, certificate, original)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_number in range(rounds + 1):
        for name, task in tasks.items():
            if cold:
                _forget(file)
            begun = time.perf_counter()
            task()
            if round_number:  # the first round warms the page cache
                times[name].append(time.perf_counter() - begun)
    size = file.stat().st_size
    where = "from the disk" if cold else "from the page cache"
    print(f"\n{title}, {where}: {size / 1e6:.1f} MB, median of {rounds} rounds")
    base = statistics.median(times["plain read"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"  {name:18} {median:8.3f} s  {size / median / 1e6:8.0f} MB/s  {median / base:7.2f} x"
        )


def _forget(path: Path) -> None:
    """Have the kernel drop the file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path, digest: Any = None) -> None:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            if digest is not None:
                digest.update(block)


def _verified(file: Path, certificate: Path | None, original: Path | None) -> None:
    outcome = verify(file, certificate=certificate, original=original)
    assert outcome.ok, outcome.findings


def _synthetic(folder: Path, side: int, megabytes: int) -> tuple[Path, Path, None, str]:
    """A checkpoint of which a quarter is orthogonal ``side`` x ``side`` matrices."""
    random = np.random.default_rng(0)
    count = max(4, megabytes * 10**6 // (4 * side * side))
    orthogonal = np.linalg.qr(random.standard_normal((side, side)))[0].astype(np.float32)
    other = random.standard_normal((side, side), dtype=np.float32)
    roles = {f"w{i}": "projected" if i % 4 == 0 else "unchanged" for i in range(count)}
    file = folder / f"side{side}.safetensors"
    rows = _write(file, {n: orthogonal if r == "projected" else other for n, r in roles.items()})
    defect = _defect(orthogonal)
    for row in rows["tensors"]:
        row["role"] = roles[row["name"]]
        row["claims"] = {"orthogonality_defect": defect} if row["role"] == "projected" else {}
    certificate = folder / f"side{side}.certificate.json"
    certificate.write_text(json.dumps(rows))
    return file, certificate, None, f"a quarter projected, matrices of {side} x {side}"


def _defect(matrix: np.ndarray) -> float:
    wide = matrix.astype(np.float64)
    return float(np.linalg.norm(wide.T @ wide - np.eye(len(wide))))


def _write(file: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write float32 tensors as safetensors; return a certificate without roles and claims."""
    header: dict[str, Any] = {}
    at = 0
    for name, value in tensors.items():
        offsets = [at, at + value.nbytes]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        at += value.nbytes
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    with file.open("wb") as out:
        out.write(head)
        for value in tensors.values():
            out.write(value.tobytes())
    rows = [
        {
            "name": name,
            "file": file.name,
            "dtype": "F32",
            "shape": list(value.shape),
            "sha256": hashlib.sha256(value.tobytes()).hexdigest(),
            "role": "unchanged",
            "claims": {},
        }
        for name, value in tensors.items()
    ]
    files = {
        file.name: {"bytes": at + len(head), "header_sha256": hashlib.sha256(head).hexdigest()}
    }
    return {"format": "stiefel-certificate/1", "files": files, "tensors": rows, "lineage": {}}


def _flips(folder: Path, trials: int) -> None:
    random = np.random.default_rng(0)
    file = folder / "small.safetensors"
    values = {f"w{i}": random.standard_normal((6, 6), dtype=np.float32) for i in range(3)}
    certificate = folder / "small.certificate.json"
    certificate.write_text(json.dumps(_write(file, values)))
    data = file.read_bytes()
    assert verify(file, certificate=certificate).ok
    begun = time.perf_counter()
    found = 0
    for bit in random.integers(0, 8 * len(data), trials).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        found += not verify(file, certificate=certificate).ok
    taken = time.perf_counter() - begun
    print(f"\nflipped bits: {found} of {trials} found, file of {len(data)} bytes, {taken:.1f} s")
    if found != trials:
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--input", type=Path, dest="original")
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
