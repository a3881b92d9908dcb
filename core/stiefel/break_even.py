"""From which rank on two factors hold no fewer numbers than the matrix they stand for."""

from __future__ import annotations


def break_even_rank(rows: int, columns: int) -> int:
    """The largest rank r with ``r (rows + columns) < rows * columns``; 0 where there is none."""
    return max(0, rows * columns - 1) // (rows + columns)
