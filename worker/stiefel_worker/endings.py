"""How an attempt can fail, in words for the caller: a reason, a blame, and what to do."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stiefel_jobs.states import Blame

#: The code by which a child says that it would need more than it may have.
TOO_LARGE = "too_large"


@dataclass(frozen=True)
class Failure:
    """Arguments of ``store.fail``."""

    reason: str
    blame: Blame
    detail: str
    fix: str | None = None
    tensor: str | None = None
    field: str | None = None
    retry: bool = True

    @property
    def error(self) -> dict[str, Any]:
        """What the job shows as its error; fields without a value are left out."""
        error = {
            "code": self.reason,
            "detail": self.detail,
            "fix": self.fix,
            "tensor": self.tensor,
            "field": self.field,
        }
        return {name: value for name, value in error.items() if value is not None}


def reported(message: Mapping[str, Any]) -> Failure:
    """A failure that the child explained itself. The caller's own mistakes are not tried again."""
    blame = Blame(message["blame"])
    texts = (message["detail"], message.get("fix"), message.get("tensor"), message.get("field"))
    detail, fix, tensor, field = (None if text is None else str(text)[:2000] for text in texts)
    return Failure(
        str(message["code"])[:64],
        blame,
        detail or "The method failed.",
        fix,
        tensor,
        field,
        retry=blame is not Blame.USER,
    )


def death(
    exit_code: int | None, peak_bytes: int, limit_bytes: int, *, for_memory: bool = True
) -> Failure:
    """The child ended without a word.

    Args:
        exit_code: negative for a signal.
        peak_bytes: the most it was seen to hold.
        limit_bytes: the most it may hold.
        for_memory: a SIGKILL that nobody here sent can be the kernel's, for memory.
    """
    if exit_code == -signal.SIGKILL and not for_memory:
        detail = "The process was killed from outside, with memory to spare."
        return Failure("killed_by_signal", Blame.SYSTEM, detail)
    if exit_code == -signal.SIGKILL:
        return Failure(
            "out_of_memory",
            Blame.RESOURCE,
            f"The process was killed by the system, most likely for memory; it held "
            f"{_mb(peak_bytes)} of its {_mb(limit_bytes)}.",
            "Choose a smaller job or a larger worker.",
        )
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return Failure("killed_by_signal", Blame.SYSTEM, f"The process died of {name}.")
    return Failure("process_exited", Blame.SYSTEM, f"The process ended early, code {exit_code}.")


def over_memory(resident_bytes: int, limit_bytes: int) -> Failure:
    """The supervisor stopped the child at its memory limit."""
    return Failure(
        "out_of_memory",
        Blame.RESOURCE,
        f"The process held {_mb(resident_bytes)}; one job may hold {_mb(limit_bytes)} here.",
        "Choose a smaller job (fewer or smaller tensors, a smaller batch) or a larger worker.",
    )


def hang(limit_s: float) -> Failure:
    """Alive, but without a sign of progress for too long."""
    detail = f"The method reported no progress for {limit_s:g} s and was stopped."
    return Failure("no_progress", Blame.TIMEOUT, detail)


def past_deadline() -> Failure:
    """The job's own deadline came while it ran."""
    return Failure(
        "deadline_passed",
        Blame.TIMEOUT,
        "The job's deadline passed while it was running.",
        "Submit it again with a later deadline.",
        retry=False,
    )


def nonsense() -> Failure:
    """The child broke the protocol: a bug, or a process taken over by its input."""
    detail = "The process sent what no method sends."
    return Failure("protocol_error", Blame.SYSTEM, detail, retry=False)


def unforeseen() -> Failure:
    """Anything that went wrong outside the child."""
    detail = "The worker could not carry out the attempt; its log has the details."
    return Failure("worker_error", Blame.SYSTEM, detail)


def _mb(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
