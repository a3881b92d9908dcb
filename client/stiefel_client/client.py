"""The synchronous client.

with Stiefel() as stiefel:
    source = stiefel.uploads.upload("model.safetensors")
    job = stiefel.jobs.submit(
        {"method": "project.unitary", "input": source.id, "include": ["*.attention.*"]}
    )
    job = stiefel.jobs.wait(job.id)
    stiefel.jobs.download(job, "out")
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stiefel_client import calls, transfers
from stiefel_client.batches import Batches
from stiefel_client.checkpoint_files import download_checkpoint
from stiefel_client.following import Following, follow
from stiefel_client.models import Artifact, Event, Job, Method, Page, Plan
from stiefel_client.retries import RetryPolicy
from stiefel_client.transport import OnBytes, Transport
from stiefel_client.waiting import drive, wait_steps


class Stiefel(Transport):
    """A connection to one service and its resources.

    Args:
        url: base URL; default $STIEFEL_URL, then the embedded service of this machine.
        key: API key; default $STIEFEL_API_KEY, then the embedded service's own key file.
        timeout: seconds to wait for one ordinary answer.
        retry: when and how often a call is repeated.

    Raises:
        ConfigurationError: the URL is none.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retry=retry)
        self.jobs = Jobs(self)
        self.batches = Batches(self)
        self.uploads = Uploads(self)
        self.artifacts = Artifacts(self)
        self.methods = Methods(self)

    def whoami(self) -> Mapping[str, Any]:
        """Tenant and scopes of the key in use."""
        found: Mapping[str, Any] = self.call(calls.get_json("/v1/whoami"))
        return found

    def keys(self) -> Any:
        """The tenant's keys, without their secrets."""
        return self.call(calls.get_json("/v1/keys"))


class Jobs:
    """Submit jobs, follow them, fetch what they made."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    def submit(
        self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Any
    ) -> Job:
        """Submit a job.

        Args:
            spec: the method and its parameters; ``stiefel methods NAME`` shows the schema.
            idempotency_key: repeat with the same key and you get the same job; made up when
                left out, so that a retry behind the scenes never makes a second job.
            options: ``labels``, ``priority``, ``deadline``, ``max_attempts``, ``output_ttl``.

        Raises:
            BadRequestError: the spec is refused; ``errors`` names each field.
        """
        call = calls.submit_job(spec, idempotency_key=idempotency_key, **options)
        return self._client.call(call).job

    def plan(self, spec: Mapping[str, Any], **options: Any) -> Plan:
        """What the job would do, without doing it."""
        return self._client.call(calls.plan_job(spec, **options))

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._client.call(calls.get_job(job_id))

    def list(
        self,
        *,
        status: Sequence[str] = (),
        label: Sequence[str] = (),
        batch: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[Job]:
        """One page of jobs, newest first; ``label`` entries read ``name=value``."""
        return self._client.call(
            calls.list_jobs(status=status, label=label, batch=batch, after=after, limit=limit)
        )

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end without its result."""
        return self._client.call(calls.act_on_job(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Ask a job to stop at its next checkpoint and keep its place."""
        return self._client.call(calls.act_on_job(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return self._client.call(calls.act_on_job(job_id, "resume"))

    def retry(self, job_id: str) -> Job:
        """Let a failed or cancelled job start again.

        Raises:
            ConflictError: it succeeded, or expired; submit an expired one anew.
        """
        return self._client.call(calls.act_on_job(job_id, "retry"))

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until the job is finished, whatever its end; a restart of the service is survived.

        Args:
            job_id: the job to wait for.
            timeout: seconds; None waits for ever.
            on_change: called with the job on every change seen.

        Raises:
            WaitTimeoutError: not finished in time; the job itself goes on.
        """
        look = calls.looking_at_job(job_id)
        steps = wait_steps(job_id, look, timeout=timeout, on_change=on_change)
        return drive(self._client.call, steps)

    def events(
        self, job_id: str, *, after: int = 0, timeout: float | None = None
    ) -> Iterator[Event]:
        """Every event beyond ``after``, live, until the job is finished.

        A broken connection is taken up again behind the last event: no gap, no repeat.

        Args:
            job_id: the job to follow.
            after: ``seq`` of the last event already known.
            timeout: seconds; None follows for ever.

        Raises:
            WaitTimeoutError: not finished in time; the job itself goes on.
            ServiceUnreachableError: the service was away for a minute.
        """
        service = self._client.service
        return follow(self._client, Following(service, job_id, after=after, timeout=timeout))

    def attempts(self, job_id: str) -> Any:
        """Every attempt, with the reason it ended."""
        return self._client.call(calls.job_part(job_id, "attempts"))

    def metrics(self, job_id: str) -> Any:
        """Every series of figures that the job reported."""
        return self._client.call(calls.job_part(job_id, "metrics"))

    def checkpoints(self, job_id: str) -> Any:
        """Every point from which the job could go on."""
        return self._client.call(calls.job_part(job_id, "checkpoints"))

    def download(
        self, job: Job, folder: str | Path, *, on_bytes: OnBytes | None = None
    ) -> builtins.list[Path]:
        """Fetch every file of a finished job into ``folder``, resuming what is half there.

        Raises:
            TransferError: the job has no files, or bytes with another sha256 came.
        """
        return transfers.download_job(self._client, job, Path(folder), on_bytes=on_bytes)

    def download_checkpoint(
        self,
        job_id: str,
        folder: str | Path,
        *,
        number: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> builtins.list[Path]:
        """Fetch a checkpoint's files into ``folder``, of a job in any state.

        Args:
            job_id: whose checkpoint; a training job's holds the newest weights and the best.
            folder: made where it is missing.
            number: which one; the newest by default.
            on_bytes: told of bytes done and of all bytes.

        Raises:
            TransferError: there is no such checkpoint, or bytes with another sha256 came.
        """
        return download_checkpoint(
            self._client, job_id, Path(folder), number=number, on_bytes=on_bytes
        )


class Uploads:
    """Bring files to the service."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    def upload(self, path: str | Path, *, on_bytes: OnBytes | None = None) -> Artifact:
        """Upload a file in parts; the same file is never sent twice.

        An upload broken off by a crash goes on where it stopped when the same file is
        uploaded again. Bytes that the service already has are not sent at all.

        Raises:
            TransferError: the service holds other bytes than were sent.
        """
        return transfers.upload(self._client, Path(path), on_bytes=on_bytes)

    def abort(self, upload_id: str) -> None:
        """Drop an upload and its parts."""
        self._client.call(calls.abort_upload(upload_id))


class Artifacts:
    """Files that the service keeps."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    def get(self, artifact_id: str) -> Artifact:
        """One artifact's record."""
        return self._client.call(calls.get_artifact(artifact_id))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[Artifact]:
        """One page of artifacts, newest first."""
        return self._client.call(calls.list_artifacts(after=after, limit=limit))

    def delete(self, artifact_id: str) -> None:
        """Delete an artifact."""
        self._client.call(calls.delete_artifact(artifact_id))

    def download(
        self, artifact: Artifact | str, path: str | Path, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch an artifact's bytes to ``path``, resuming what is half there.

        Raises:
            TransferError: bytes with another sha256 came.
        """
        found = self.get(artifact) if isinstance(artifact, str) else artifact
        source = calls.artifact_content(found.id)
        return transfers.download(
            self._client, source, Path(path), sha256=found.sha256, on_bytes=on_bytes
        )


class Methods:
    """What the service can do."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    def list(self) -> list[Method]:
        """Every method on offer."""
        return self._client.call(calls.list_methods())

    def get(self, name: str) -> Method:
        """One method with the JSON Schema of its spec."""
        return self._client.call(calls.get_method(name))
