"""How fast a job goes and how steady that is, from its reports: the range of an estimate."""

from __future__ import annotations

from itertools import pairwise

MARK_S = 1.0  # between two marks
MARKS = 64  # when so many are kept, every second is dropped
STRETCHES = 8  # of equal length; the slowest and the fastest make the range


class Pace:
    """Marks of (time, units done) over the present stage of one attempt."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []
        self._stage: tuple[float, str] | None = None
        self._gap = MARK_S

    def add(self, at: float, done: float, *, total: float, unit: str) -> None:
        """Note a report; another total or unit, or a step back, begins a new stage."""
        marks = self._marks
        if (total, unit) != self._stage or (marks and done < marks[-1][1]):
            self._stage, self._gap = (total, unit), MARK_S
            marks.clear()
        if marks and at - marks[-1][0] < self._gap:
            return
        marks.append((at, done))
        if len(marks) > MARKS:
            del marks[1::2]
            self._gap *= 2

    def rates(self) -> dict[str, float]:
        """``rate``, ``rate_low`` and ``rate_high`` in units per second; nothing before 2 marks."""
        marks = self._marks
        if len(marks) < 2 or marks[-1][1] <= marks[0][1]:
            return {}
        every = -(-(len(marks) - 1) // STRETCHES)
        chosen = marks[::-1][::every][::-1]
        found = [(b - a) / (t - s) for (s, a), (t, b) in pairwise(chosen)]
        (began, first), (now, last) = marks[0], marks[-1]
        rate = (last - first) / (now - began)
        return {"rate": rate, "rate_low": min(found), "rate_high": max(found)}
