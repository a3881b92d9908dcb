"""Artifacts and uploads."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import Field

from stiefel_api.views.base import (
    ARTIFACT_EXAMPLE,
    JOB_EXAMPLE,
    SHA256_EXAMPLE,
    TIME_EXAMPLE,
    UPLOAD_EXAMPLE,
    Body,
    FileName,
    Sha256,
    View,
    known_moment,
    moment,
)
from stiefel_jobs.records import Artifact, Upload
from stiefel_jobs.store.uploads import part_count


class ArtifactView(View):
    """A stored file."""

    id: str = Field(description="Name it as `input` of a job.", examples=[ARTIFACT_EXAMPLE])
    object: str = Field(default="artifact", description="Always `artifact`.")
    name: str = Field(description="File name.", examples=["model.safetensors"])
    kind: str = Field(
        description="`safetensors`, `json`, `parquet`, `npz`, `text`, … by content and name.",
        examples=["safetensors"],
    )
    bytes: int = Field(description="Size.", examples=[90868376])
    sha256: str = Field(description="Digest of the content.", examples=[SHA256_EXAMPLE])
    job: str | None = Field(
        description="The job that made it; null for an upload.", examples=[JOB_EXAMPLE]
    )
    meta: dict[str, Any] = Field(
        description="Facts read from the content, such as the number of tensors.",
        examples=[{"tensors": 101, "parameters": 22713216}],
    )
    created_at: datetime = Field(description="When it was stored.", examples=[TIME_EXAMPLE])
    expires_at: datetime | None = Field(
        description="When it will be deleted; null: never.", examples=["2026-12-21T09:30:00Z"]
    )
    links: dict[str, str] = Field(
        description="Where to go from here.",
        examples=[{"content": f"/v1/artifacts/{ARTIFACT_EXAMPLE}/content"}],
    )

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Show a record of the store."""
        path = f"/v1/artifacts/{artifact.id}"
        return cls(
            id=artifact.id,
            name=artifact.name,
            kind=artifact.kind,
            bytes=artifact.size,
            sha256=artifact.sha256,
            job=artifact.job_id,
            meta=artifact.meta,
            created_at=known_moment(artifact.created_at),
            expires_at=moment(artifact.expires_at),
            links={"self": path, "content": f"{path}/content"},
        )


class NewUpload(Body):
    """A file about to be sent in parts."""

    filename: FileName = Field(description="A plain file name.", examples=["model.safetensors"])
    size: int = Field(ge=0, description="Bytes of the whole file.", examples=[90868376])
    sha256: Sha256 | None = Field(
        default=None,
        description="Digest of the whole file: checked at the end, and bytes that you already "
        "own are not sent again.",
        examples=[SHA256_EXAMPLE],
    )


class PartView(View):
    """One part of an upload."""

    number: int = Field(description="Counted from 1.", examples=[1])
    bytes: int = Field(description="Exactly so many bytes belong here.", examples=[67108864])
    url: str = Field(
        description="`PUT` the bytes here: a presigned URL of the object store, or a path of "
        "this service. Valid for 15 minutes; `GET` the upload for fresh ones.",
        examples=[f"/v1/uploads/{UPLOAD_EXAMPLE}/parts/1"],
    )
    received: bool = Field(description="Whether it has arrived whole.", examples=[False])


class UploadView(View):
    """A resumable upload."""

    id: str = Field(description="Name of the upload.", examples=[UPLOAD_EXAMPLE])
    object: str = Field(default="upload", description="Always `upload`.")
    status: str = Field(description="`open`, `completed` or `aborted`.", examples=["open"])
    filename: str = Field(description="As announced.", examples=["model.safetensors"])
    size: int = Field(description="As announced.", examples=[90868376])
    sha256: str | None = Field(description="As announced.", examples=[SHA256_EXAMPLE])
    part_size: int = Field(
        description="Bytes of every part but the last, which has the rest.", examples=[67108864]
    )
    parts: list[PartView] = Field(description="Every part, received or not.")
    artifact: ArtifactView | None = Field(
        default=None, description="The artifact, once completed.", examples=[None]
    )
    created_at: datetime = Field(description="When it began.", examples=[TIME_EXAMPLE])
    expires_at: datetime = Field(
        description="Parts are dropped then.", examples=["2026-11-28T09:30:00Z"]
    )

    @classmethod
    def of(cls, upload: Upload, parts: list[PartView], artifact: Artifact | None) -> Self:
        """Show a record of the store with its parts."""
        assert not parts or len(parts) == part_count(upload)
        return cls(
            id=upload.id,
            status=upload.state,
            filename=upload.filename,
            size=upload.size,
            sha256=upload.sha256,
            part_size=upload.part_size,
            parts=parts,
            artifact=ArtifactView.of(artifact) if artifact else None,
            created_at=known_moment(upload.created_at),
            expires_at=known_moment(upload.expires_at),
        )
