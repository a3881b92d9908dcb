"""Bytes into the scratch folder: the inputs, and the state of the last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.records import Artifact, Checkpoint, StateFile
from stiefel_worker.scratch import Scratch, safe_name, safe_path


def stage_inputs(blobs: Blobs, inputs: Mapping[str, Artifact], scratch: Scratch) -> None:
    """Stream every input to ``scratch.input`` under its staged name, verifying its digest.

    Raises:
        OSError: the store failed, or the bytes are not those that were uploaded.
    """
    for name, artifact in inputs.items():
        target = scratch.input / safe_name(name)
        blobs.fetch(artifact.tenant, artifact.sha256, target)
        target.chmod(0o400)


def restore_state(blobs: Blobs, tenant: str, checkpoint: Checkpoint, scratch: Scratch) -> None:
    """Rebuild ``scratch.state`` to exactly the bytes of ``checkpoint``."""
    for file in checkpoint.files:
        target = scratch.state / safe_path(file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _restore_file(blobs, tenant, file, target, spare=scratch.root / "segment")


def _restore_file(blobs: Blobs, tenant: str, file: StateFile, target: Path, spare: Path) -> None:
    with target.open("wb") as out:
        for segment in file.segments:
            # By way of a file of its own: a segment counts only when its digest was verified.
            blobs.fetch(tenant, segment.sha256, spare)
            with spare.open("rb") as part:
                while sent := os.sendfile(out.fileno(), part.fileno(), None, 2**30):
                    assert sent > 0
            spare.unlink()
    if target.stat().st_size != file.size:
        raise OSError(f"state file {file.path} was restored to another size than its checkpoint's")
