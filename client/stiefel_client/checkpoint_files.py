"""Checkpoints on their way to the client, of a job that runs, has failed or is finished."""

from __future__ import annotations

from pathlib import Path

from stiefel_client import calls
from stiefel_client.errors import NotFoundError, TransferError
from stiefel_client.models import Checkpoint
from stiefel_client.transfers import download, plain_name
from stiefel_client.transport import OnBytes, Transport

OVERTAKEN = 5  # times that the newest checkpoint may be dropped for a newer one


def download_checkpoint(
    client: Transport,
    job_id: str,
    folder: Path,
    *,
    number: int | None = None,
    on_bytes: OnBytes | None = None,
) -> list[Path]:
    """Fetch the files of one checkpoint; see ``Jobs.download_checkpoint``."""
    for chance in range(OVERTAKEN, 0, -1):
        found = _checkpoint(client, job_id, number)
        try:
            return _checkpoint_files(client, found, folder, on_bytes)
        except NotFoundError:
            # A running job drops old checkpoints; its newest is another one by now.
            if number is not None or chance == 1:
                raise
    raise AssertionError("unreachable")


def _checkpoint(client: Transport, job_id: str, number: int | None) -> Checkpoint:
    kept = client.call(calls.list_checkpoints(job_id)).data
    for found in reversed(kept):
        if number in (None, found.number):
            return found
    numbers = ", ".join(str(found.number) for found in kept) or "none"
    wanted = "a checkpoint" if number is None else f"checkpoint {number}"
    raise TransferError(f"{job_id} does not have {wanted}", fix=f"Kept are: {numbers}")


def _checkpoint_files(
    client: Transport, found: Checkpoint, folder: Path, on_bytes: OnBytes | None
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    whole = sum(file.bytes for file in found.files)
    before, paths = 0, []
    for file in found.files:
        if file.sha256 is None:
            raise TransferError(
                f"{file.name} is stored in pieces, without one digest to check it by",
                fix=f"Fetch it as it is from {file.url}",
            )

        def count(done: int, _: int, base: int = before) -> None:
            if on_bytes:
                on_bytes(base + done, whole)

        target = folder / plain_name(file.name.rpartition("/")[2])
        paths.append(download(client, file.url, target, sha256=file.sha256, on_bytes=count))
        before += file.bytes
    return paths
