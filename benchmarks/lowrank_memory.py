"""Peak live memory of one low-rank layer in training, against the factors it has to hold.

    python benchmarks/lowrank_memory.py [--out FILE]

Counts the bytes of every storage that is alive, operation by operation, over whole phases of
variant A with AdamW; the activations of the small batch are taken off. The yardstick is
2 (2r) (n + m) + 3 (2r)^2 floats: augmented bases before and after, core with two moments. The
measurement is that of tests/core/lowrank/test_memory.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/core/lowrank"))
from test_memory import layer_memory  # found only with the line above


def measure(n: int, m: int, rank: int) -> dict[str, float]:
    """Peak bytes of the layer, the yardstick, and what dense AdamW holds."""
    peak, factors = layer_memory(n, m, rank)
    return {
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
    sizes = [(500, 500, 10), (1000, 1000, 50), (1024, 1024, 32), (2048, 2048, 64), (4096, 1024, 64)]
    rows = [measure(*size) for size in sizes]
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.out:
        record = {
            "command": "python benchmarks/lowrank_memory.py",
            "torch": torch.__version__,
            "note": "dense_MB: weight, gradient and both moments of AdamW",
            "rows": rows,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
