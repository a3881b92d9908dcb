"""Positions in listings, as callers see them: opaque words that come back as they went out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=500, description="Entries per page.", examples=[50])]
AfterId = Annotated[
    str | None,
    Query(
        max_length=64,
        pattern=r"^[A-Za-z0-9_]+$",
        description="The `next` of the page before.",
        examples=["job_01K5Z8R3N0V7W2X4Y6Z8A0B2C4"],
    ),
]
