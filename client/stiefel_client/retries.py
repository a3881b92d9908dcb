"""When a call is worth repeating, and how long to wait before."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_PASSING = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter; all times in seconds.

    Args:
        attempts: how often a call is made at most, the first time included.
        first: the longest pause before the second attempt; doubles from then on.
        longest: no pause is longer, unless the service asks for it.
        patience: the longest Retry-After that is honoured; beyond it the error is raised.
    """

    attempts: int = 5
    first: float = 0.25
    longest: float = 8.0
    patience: float = 60.0

    def pause(self, attempt: int) -> float:
        """How long to wait after the ``attempt``-th failure, counted from 1."""
        longest = min(self.longest, self.first * 2.0 ** (attempt - 1))
        # Jitter spreads clients that failed together; it needs no cryptographic randomness.
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def after_answer(
        self, response: httpx.Response, attempt: int, *, repeatable: bool
    ) -> float | None:
        """The pause before asking again, or None when this answer stands."""
        if attempt >= self.attempts or response.status_code not in _PASSING:
            return None
        # 429 and 503 say that nothing was done; behind 502 and 504 something may have been.
        if not repeatable and response.status_code not in (429, 503):
            return None
        asked = retry_after(response)
        if asked is None:
            return self.pause(attempt)
        return asked if asked <= self.patience else None

    def after_error(
        self, error: httpx.TransportError, attempt: int, *, repeatable: bool
    ) -> float | None:
        """The pause before asking again after no answer came, or None to give up."""
        unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        worth = (repeatable or unsent) and not isinstance(error, httpx.UnsupportedProtocol)
        return self.pause(attempt) if worth and attempt < self.attempts else None


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the answer asks to wait, from either form of the header."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
