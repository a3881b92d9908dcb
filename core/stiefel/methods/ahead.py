"""Convert the next matrices while the last one is hashed and written; results come in order.

A singular value decomposition of a small matrix gains nothing from a second core, and two at once
gain all of it: 953 matrices of 512 x 512 took as long on two threads as on one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

SMALL = 2**20  # elements of a matrix that is not worth the threads of more than one core


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, largest: int
) -> Generator[tuple[Item, Result], None, None]:
    """Yield ``(item, work(item))`` in the order of ``items``; an exception comes at its place.

    Args:
        work: releases the interpreter most of the time, as torch's kernels do.
        items: what to work on.
        largest: elements of the largest matrix among them. Up to ``SMALL``, every core works on
            a matrix of its own; beyond, all of them work on one, and only writing overlaps.

    Memory: one result per core that is not consumed yet, at most 8 MiB each in float64, or one
    large one.
    """
    threads = torch.get_num_threads()
    workers = threads if largest <= SMALL else 1

    def begin() -> None:
        torch.set_num_threads(threads // workers)

    with ThreadPoolExecutor(workers, "convert", begin) as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)
