"""The Python client and the `stiefel` command line."""

from __future__ import annotations

from stiefel_client.aio import AsyncStiefel
from stiefel_client.client import Stiefel
from stiefel_client.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServiceUnreachableError,
    StiefelApiError,
    StiefelClientError,
    TransferError,
    UnreadableFileError,
    WaitTimeoutError,
)
from stiefel_client.models import Artifact, Batch, Event, Job, Method, Page, Plan, Report
from stiefel_client.retries import RetryPolicy

__all__ = [
    "Artifact",
    "AsyncStiefel",
    "AuthenticationError",
    "BadRequestError",
    "Batch",
    "ConfigurationError",
    "ConflictError",
    "Event",
    "Job",
    "Method",
    "NotFoundError",
    "Page",
    "PermissionDeniedError",
    "Plan",
    "RateLimitError",
    "Report",
    "RetryPolicy",
    "ServerError",
    "ServiceUnreachableError",
    "Stiefel",
    "StiefelApiError",
    "StiefelClientError",
    "TransferError",
    "UnreadableFileError",
    "WaitTimeoutError",
]
