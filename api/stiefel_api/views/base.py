"""What all views share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from stiefel_api.texts import check_body

T = TypeVar("T")

SHA256_EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
JOB_EXAMPLE = "job_01K5Z8R3N0V7W2X4Y6Z8A0B2C4"
BATCH_EXAMPLE = "batch_01K5Z8R2J9T3U1V5W7X9Y1Z3A5"
ARTIFACT_EXAMPLE = "art_01K5Z8Q1M8S6T4V2W0X8Y6Z4A2"
UPLOAD_EXAMPLE = "upl_01K5Z8P0K7R5S3T1V9W7X5Y3Z1"
TIME_EXAMPLE = "2026-11-21T09:30:00.125000Z"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: A plain file name: it is shown and offered for saving, and never becomes a path.
FileName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]+$")
]


_DEEPEST = 64
_LARGEST = 30_000


def shallow(value: Any) -> Any:
    """Refuse JSON of unknown form that is deeper than serialisers follow, or has too many parts."""
    level, depth, parts = [value], 0, 0
    while level:
        depth += 1
        parts += len(level)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        if parts > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} values in all")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return value


#: A spec on its way to the method's own model.
Spec = Annotated[dict[str, Any], AfterValidator(shallow)]


class Body(BaseModel):
    """Something a caller sends: unknown fields are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        check_body(data)
        return data


class View(BaseModel):
    """Something the service answers; further fields may be added at any time."""

    model_config = ConfigDict(extra="allow")


class Page(View, Generic[T]):
    """One page of a listing."""

    object: str = Field(default="list", description="Always `list`.")
    data: list[T] = Field(description="The entries of this page.")
    has_more: bool = Field(description="Whether another page follows.", examples=[False])
    next: str | None = Field(
        description="Opaque cursor: send it as `after` for the next page.", examples=[None]
    )


class Fault(View):
    """One faulty place of a request."""

    pointer: str | None = Field(
        default=None,
        description="JSON pointer into the request's body.",
        examples=["/spec/include/0"],
    )
    parameter: str | None = Field(
        default=None, description="Name of the faulty parameter.", examples=[None]
    )
    message: str = Field(
        description="What is wrong there.", examples=["the pattern 'q_proj' matches no tensor"]
    )
    cells: list[str] | None = Field(
        default=None,
        description="Of a batch: the cells that this fault is in.",
        examples=[["seed=0", "seed=1"]],
    )


class ProblemView(View):
    """A refusal (RFC 9457, `application/problem+json`)."""

    type: str = Field(
        description="URI of the kind of problem.",
        examples=["urn:stiefel:problem:pattern-matches-nothing"],
    )
    title: str = Field(description="The status in words.", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status.", examples=[422])
    code: str = Field(
        description="Stable name of the problem, for programs.",
        examples=["pattern_matches_nothing"],
    )
    detail: str = Field(
        description="What is wrong, naming the field, tensor or id.",
        examples=["the pattern 'q_proj' matches none of the 101 tensors"],
    )
    instance: str = Field(description="Path of the request.", examples=["/v1/jobs"])
    request_id: str = Field(
        description="Quote it when reporting a fault.",
        examples=["req_01K5Z8S5P1X9Y7Z5A3B1C9D7E5"],
    )
    retryable: bool = Field(
        description="Whether the same request may succeed later.", examples=[False]
    )
    fix: str | None = Field(
        default=None,
        description="What to do about it.",
        examples=["Names look like: encoder.layer.0.attention.self.query.weight."],
    )
    errors: list[Fault] = Field(default_factory=list, description="Every faulty place.")
    tensor: str | None = Field(
        default=None, description="The tensor at fault, if one is.", examples=[None]
    )
    allowed_actions: list[str] = Field(
        default_factory=list,
        description="For a conflict: the actions that are possible now.",
        examples=[[]],
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare the refusals of a route, beside those that every route has."""
    texts = {
        400: "Malformed.",
        401: "No key, or one that is not valid.",
        403: "The key lacks the scope.",
        404: "Unknown, someone else's, or expired.",
        408: "The client fell silent in the middle of the body.",
        409: "Not possible in the present state.",
        410: "The upload has expired or was aborted.",
        412: "Changed since it was read.",
        413: "Too large.",
        415: "The body must be JSON.",
        416: "The range lies outside the file.",
        422: "The request cannot be carried out as it is.",
        428: "`If-Match` is required.",
        429: "A quota is used up.",
        500: "The service failed.",
        503: "The database cannot be reached at present; `Retry-After` says when to try again.",
    }
    wanted = {401, 403, 422, 500, 503, *statuses}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": texts[s], "content": content} for s in sorted(wanted)}


def moment(seconds: float | None) -> datetime | None:
    """Return a time of the database as a date in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def known_moment(seconds: float) -> datetime:
    """Do the same for a time that is always there."""
    return datetime.fromtimestamp(seconds, UTC)
