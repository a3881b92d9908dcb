"""Peak live memory of one low-rank layer in training, against the factors it has to hold.

    python benchmarks/lowrank_memory.py [--out FILE]

Counts the bytes of every storage that is alive, operation by operation, over whole phases of
variant A with AdamW; activations (what has the batch's rows as a dimension) do not count. The
yardstick is 2 (2r) (n + m) + 3 (2r)^2 floats: augmented bases before and after, core with two
moments. The measurement is that of tests/core/lowrank/test_memory.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/core/lowrank"))
from test_memory import layer_memory  # found only with the line above

# n, m, rank and kernel; a kernel over 1 is a convolution with m = channels kernel^2.
SIZES = [
    (500, 500, 10, 1),
    (1000, 1000, 50, 1),
    (1024, 1024, 32, 1),
    (2048, 2048, 64, 1),
    (4096, 1024, 64, 1),
    (1024, 4096, 64, 1),
    (8192, 512, 64, 1),
    (256, 256 * 9, 32, 3),
]
# Rows of the batch. Fewer than the rank: Householder makes the new directions, else Cholesky does.
ROWS = (7, 131)


def measure(n: int, m: int, rank: int, kernel: int, rows: int) -> dict[str, float | str]:
    """Peak bytes of the layer, the yardstick, and what dense AdamW holds."""
    peak, factors = layer_memory(n, m, rank, kernel=kernel, rows=rows)
    return {
        "layer": "linear" if kernel == 1 else f"convolution {kernel} x {kernel}",
        "rows": rows,
        "n": n,
        "m": m,
        "rank": rank,
        "peak_MB": round(peak / 1e6, 2),
        "of_factors": round(peak / factors, 2),
        "dense_MB": round(4 * 4 * n * m / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(*size, count) for size in SIZES for count in ROWS]
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.out:
        record = {
            "command": f"python benchmarks/lowrank_memory.py --out {args.out}",
            "torch": torch.__version__,
            "machine": f"{platform.machine()} CPU",
            "note": "dense_MB: weight, gradient and both moments of AdamW",
            "rows": rows,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
