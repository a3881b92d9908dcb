"""Which ranks a matrix can have, for every room that is handed one."""

from __future__ import annotations

from numbers import Integral

from stiefel.errors import InvalidInputError


def is_whole(rank: object) -> bool:
    """Whether it is an integer, of numpy too; True and 8.0 are none."""
    return isinstance(rank, Integral) and not isinstance(rank, bool)


def check_rank(rank: int, n: int, m: int, layer: str = "") -> None:
    """Raise when no n x m matrix, that of ``layer``, has this rank."""
    if not is_whole(rank) or not 1 <= rank <= min(n, m):
        raise InvalidInputError(
            f"rank {rank!r} is no whole number in 1..{min(n, m)} for "
            f"{f'{layer!r}, ' if layer else ''}a {n} x {m} matrix",
            code="rank_out_of_range",
            field="/rank",
            tensor=layer or None,
            fix=f"choose a rank of at most {min(n, m)}",
        )
