"""Bytes out of the scratch folder: checkpoint segments while the child runs, deliveries after.

A state file only grows, so a checkpoint uploads what was added since the last one. The files of a
checkpoint are opened when it is reported: a method may delete a file soon after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.records import Checkpoint, NewArtifact, Segment, StateFile
from stiefel_worker.scratch import Scratch, UnsafePathError, chunks, safe_name, safe_path


class Snapshot:
    """The files of one reported checkpoint, held open at the sizes they had."""

    def __init__(self, scratch: Scratch, step: int, sizes: Mapping[str, int]) -> None:
        self.step = step
        self.sizes = {safe_path(path): int(size) for path, size in sizes.items()}
        self._stack = ExitStack()
        self.files: dict[str, BinaryIO] = {}
        try:
            for path in self.sizes:
                opened = scratch.open(scratch.state / path)
                self.files[path] = self._stack.enter_context(opened)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()


@dataclass
class Ledger:
    """Which bytes of which state file are durable already."""

    blobs: Blobs
    tenant: str
    segments: dict[str, list[Segment]] = field(default_factory=dict)

    @staticmethod
    def resume(blobs: Blobs, tenant: str, checkpoint: Checkpoint | None) -> Ledger:
        """Begin with the segments of the checkpoint that the run continues from."""
        files = checkpoint.files if checkpoint else ()
        return Ledger(blobs, tenant, {file.path: list(file.segments) for file in files})

    def upload(self, snapshot: Snapshot) -> list[StateFile]:
        """Upload what ``snapshot`` has beyond the last one.

        Raises:
            UnsafePathError: a file shrank, against the protocol.
            OSError: the store failed; what was uploaded is not uploaded again.
        """
        for path in set(self.segments) - set(snapshot.sizes):
            del self.segments[path]
        return [
            self._upload_file(path, snapshot.files[path], size)
            for path, size in snapshot.sizes.items()
        ]

    def _upload_file(self, path: str, file: BinaryIO, size: int) -> StateFile:
        known = self.segments.setdefault(path, [])
        durable = sum(segment.size for segment in known)
        if size > durable:
            blob = self.blobs.put_stream(self.tenant, chunks(file, durable, size))
            known.append(Segment(blob.sha256, blob.size))
            durable += blob.size
        if size != durable:
            raise UnsafePathError(f"state file {path} shrank from {durable} to {size} bytes")
        return StateFile(path, size, tuple(known))


def deliver(
    blobs: Blobs, tenant: str, scratch: Scratch, deliveries: Sequence[Mapping[str, Any]]
) -> list[NewArtifact]:
    """Upload each delivery, the concatenation of its parts, hashing as it streams.

    Raises:
        UnsafePathError: a name or part that the child may not deliver.
    """
    artifacts = []
    for item in deliveries:
        name = safe_name(str(item["name"]))
        paths = [Path(str(part)) for part in item["parts"]]
        with ExitStack() as stack:
            files = [stack.enter_context(scratch.open(path)) for path in paths]
            parts = (chunk for file in files for chunk in chunks(file, 0, 2**62))
            blob = blobs.put_stream(tenant, parts)
        artifacts.append(NewArtifact(str(item["kind"]), name, blob.sha256, blob.size))
    return artifacts
