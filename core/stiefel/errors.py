"""Every error that core raises on purpose.

StiefelError                 code, detail, fix; the tensor or field at fault where there is one
├── InvalidInputError        the caller's data cannot be used (blame: user)
├── NotConvergedError        an iteration missed its tolerance
├── TooLargeError            the work needs more memory than there is (blame: resource)
└── StopRequested            not a failure: the run was asked to stop at its next safe point
"""

from __future__ import annotations


class StiefelError(Exception):
    """Base of all deliberate errors; safe to show to a client as it is.

    Args:
        detail: what is wrong, naming the tensor, field or file and the offending value.
        code: stable machine-readable slug, for example ``non_finite_weights``.
        fix: what the caller can do about it.
        tensor: name of the tensor at fault.
        field: JSON pointer into the spec, for example ``/include/0``.
    """

    blame = "system"
    default_code = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        fix: str | None = None,
        tensor: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.fix = fix
        self.tensor = tensor
        self.field = field


class InvalidInputError(StiefelError, ValueError):
    """The caller's tensor, file or spec cannot be used."""

    blame = "user"
    default_code = "invalid_input"


class NotConvergedError(StiefelError, ArithmeticError):
    """An iteration ended above its tolerance."""

    blame = "user"
    default_code = "not_converged"


class TooLargeError(StiefelError):
    """The work is expected to need more memory than it may have."""

    blame = "resource"
    default_code = "too_large"


class StopRequested(StiefelError):  # noqa: N818 - a request obeyed, not an error
    """Raised inside a method at a safe point after a stop was requested; never a failure."""

    default_code = "stop_requested"
