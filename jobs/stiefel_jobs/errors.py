"""What the store refuses, each with a stable code and a remedy.

StoreError
├── NotFoundError               unknown, someone else's, or expired: the three are not told apart
├── StaleFenceError             the job has moved on; the worker must let go of it
├── ActionNotAllowedError       the verb does not fit the state; carries the verbs that do
├── IdempotencyConflictError    the key was used before with another request
├── UploadError                 parts, sizes or digests that do not fit together
└── LimitError                  a quota is used up
"""

from __future__ import annotations


class StoreError(Exception):
    """A refusal by the store; ``detail`` and ``fix`` may be shown to the caller."""

    code = "store_error"
    fix: str | None = None

    def __init__(self, detail: str, *, code: str | None = None, fix: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code
        if fix is not None:
            self.fix = fix


class NotFoundError(StoreError):
    """Nothing of that id exists for this tenant."""

    code = "not_found"
    fix = "Check the id and the key: ids of other tenants and expired artifacts are not found."


class StaleFenceError(StoreError):
    """The lease was lost and the job has moved on: drop the work, write nothing."""

    code = "stale_fence"


class ActionNotAllowedError(StoreError):
    """The verb does not apply to the job's state."""

    code = "action_not_allowed"

    def __init__(self, detail: str, *, allowed: tuple[str, ...]) -> None:
        verbs = ", ".join(allowed) or "none"
        super().__init__(detail, fix=f"Actions allowed now: {verbs}.")
        self.allowed = allowed


class IdempotencyConflictError(StoreError):
    """The idempotency key already belongs to a different request."""

    code = "idempotency_conflict"
    fix = "Send a fresh Idempotency-Key, or repeat the first request unchanged."


class UploadError(StoreError):
    """The upload's parts, sizes or digests do not fit together."""

    code = "upload_invalid"


class LimitError(StoreError):
    """The tenant has reached a quota."""

    code = "limit_reached"
    fix = "Wait for work in progress to finish, or ask for a higher quota."
