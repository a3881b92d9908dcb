"""Identifiers such as ``job_01K5Z8…``: 48 bits of milliseconds, 80 random bits, in base 32.

Ids sort by creation within a process, so that listings page by id and jobs queue in order. The
clock in an id decides nothing else: leases and deadlines use the database's clock.
"""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U to misread
_RANDOM_BITS = 80
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and 26 characters, greater than every id made before by this process."""
    global _last
    fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _lock:
        # Within one millisecond randomness would shuffle the order: count on instead.
        _last = fresh if fresh >> _RANDOM_BITS > _last >> _RANDOM_BITS else _last + 1
        value = _last
    return f"{prefix}_{_encode(value)}"


def _encode(value: int) -> str:
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
