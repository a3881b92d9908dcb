"""The certificate: reading it, and finding the files it speaks of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stiefel_client.errors import UnreadableFileError

FORMAT = "stiefel-certificate/1"
NAME = "certificate.json"


class CertifiedFile(BaseModel):
    """Size and header digest of one file; the digest covers the 8 length bytes too."""

    bytes: int
    header_sha256: str


class CertifiedTensor(BaseModel):
    """One tensor as it must be found."""

    model_config = ConfigDict(extra="allow")

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    role: str
    source: str | None = None
    claims: dict[str, Any] = Field(default_factory=dict)


class Certificate(BaseModel):
    """What the service vouches for: every byte of every file, and the figures of each tensor."""

    model_config = ConfigDict(extra="allow")

    format: str
    files: dict[str, CertifiedFile]
    tensors: list[CertifiedTensor]
    lineage: dict[str, Any] = Field(default_factory=dict)

    @property
    def inputs(self) -> Mapping[str, str]:
        """sha256 of each input file by name, where the lineage has it."""
        found = self.lineage.get("input")
        return found if isinstance(found, dict) else {}

    @property
    def rotation(self) -> bool:
        """Whether the job asked for determinant +1."""
        spec = self.lineage.get("spec")
        return isinstance(spec, dict) and spec.get("determinant") == 1


def read_certificate(path: Path) -> Certificate:
    """Parse a certificate.

    Raises:
        UnreadableFileError: missing, no JSON, another format, or a field at fault.
    """
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise UnreadableFileError(
            f"{path}: {error.strerror}", fix="Name the certificate with --certificate"
        ) from error
    except ValueError as error:
        raise UnreadableFileError(f"{path}: no JSON ({error})") from error
    found = body.get("format") if isinstance(body, dict) else None
    if found != FORMAT:
        raise UnreadableFileError(
            f"{path}: format {found!r}, this program reads {FORMAT!r}",
            fix="Use a client of the version that made the certificate",
        )
    try:
        return Certificate.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(step) for step in first["loc"])
        raise UnreadableFileError(f"{path}: /{where}: {first['msg']}") from error


def certificate_beside(file: Path) -> Path:
    """Where the certificate of ``file`` (or of the folder) is expected."""
    folder = file if file.is_dir() else file.parent
    own = folder / f"{file.stem}.certificate.json"
    return own if own.is_file() else folder / NAME


def certified_files(target: Path, certificate: Certificate) -> dict[str, Path]:
    """Which path to check for which certified name.

    A folder or an index means every certified file in that folder; a single file is
    checked under its own name, or under the only certified one where it was renamed.
    """
    names = list(certificate.files)
    if target.is_dir() or target.name.endswith(".index.json"):
        folder = target if target.is_dir() else target.parent
        return {name: folder / Path(name).name for name in names}
    if target.name in certificate.files:
        return {target.name: target}
    if len(names) == 1:
        return {names[0]: target}
    raise UnreadableFileError(
        f"the certificate does not mention {target.name}; it covers {', '.join(names)}",
        fix="Check the folder, or rename the file to its certified name",
    )
