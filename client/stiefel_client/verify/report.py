"""What a verification found, as values; how it is shown is the command line's business."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is not as certified.

    ``where`` is a tensor's name, ``header``, ``file``, ``certificate`` or ``input``.
    """

    where: str
    code: str
    detail: str


@dataclass(frozen=True)
class Claim:
    """One certified figure and the same figure measured here; ``measured`` None: not measurable."""

    name: str
    claimed: float
    measured: float | None
    holds: bool


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the file: its role and what became of its claims."""

    name: str
    file: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    claims: tuple[Claim, ...] = ()


@dataclass
class Verification:
    """The outcome for one certificate and the files it covers.

    Attributes:
        files: what was read.
        tensors: every tensor that was found and certified.
        findings: everything that is wrong; empty means verified.
        bytes_read: bytes hashed.
        seconds: wall time.
    """

    files: list[Path] = field(default_factory=list)
    tensors: list[TensorCheck] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every byte and every recomputed claim is as certified."""
        return bool(self.files) and not self.findings

    def add(self, where: str, code: str, detail: str) -> None:
        """Note something that is not as certified."""
        self.findings.append(Finding(where, code, detail))

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-ready values."""
        return {
            "ok": self.ok,
            "files": [str(path) for path in self.files],
            "bytes": self.bytes_read,
            "seconds": round(self.seconds, 3),
            "findings": [asdict(finding) for finding in self.findings],
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }
