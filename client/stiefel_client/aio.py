"""The asynchronous client: the same calls, the same rules, awaited.

async with AsyncStiefel() as stiefel:
    source = await stiefel.uploads.upload("model.safetensors")
    job = await stiefel.jobs.submit({"method": "project.unitary", "input": source.id})
    job = await stiefel.jobs.wait(job.id)
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from stiefel_client import calls, transfers
from stiefel_client.async_batches import AsyncBatches
from stiefel_client.calls import Call
from stiefel_client.checkpoint_files import download_checkpoint
from stiefel_client.errors import error_from
from stiefel_client.following import Following, follow_async
from stiefel_client.locate import find_service
from stiefel_client.models import Artifact, Event, Job, Method, Page, Plan
from stiefel_client.retries import RetryPolicy
from stiefel_client.transport import OnBytes, Transport, answer, connection, unreachable
from stiefel_client.waiting import drive_async, wait_steps

T = TypeVar("T")


class AsyncStiefel:
    """A connection to one service; see ``Stiefel`` for the arguments and the errors."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.service = find_service(url, key)
        self.timeout = timeout
        self.retry = retry or RetryPolicy()
        self.http = httpx.AsyncClient(**connection(self.service))
        self.jobs = AsyncJobs(self)
        self.batches = AsyncBatches(self)
        self.uploads = AsyncUploads(self)
        self.artifacts = AsyncArtifacts(self)
        self.methods = AsyncMethods(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def call(self, call: Call[T]) -> T:
        """Carry one call out, repeating it where that is safe; see ``Transport.call``."""
        attempt = 0
        while True:
            attempt += 1
            pause: float | None
            try:
                response = await self.http.request(**call.arguments(self.timeout))
            except httpx.TransportError as error:
                pause = self.retry.after_error(error, attempt, repeatable=call.repeatable)
                if pause is None:
                    raise unreachable(self.service, error) from error
            else:
                pause = self.retry.after_answer(response, attempt, repeatable=call.repeatable)
                if pause is None:
                    return answer(self.service, call, response)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def stream(self, call: Call[None]) -> AsyncIterator[httpx.Response]:
        """Open a call whose answer is read line by line."""
        async with self.http.stream(**call.arguments(self.timeout)) as response:
            if response.status_code >= 400:
                await response.aread()
                raise error_from(response)
            yield response

    async def whoami(self) -> Mapping[str, Any]:
        """Tenant and scopes of the key in use."""
        found: Mapping[str, Any] = await self.call(calls.get_json("/v1/whoami"))
        return found

    async def in_thread(self, work: Callable[[Transport], T]) -> T:
        """Run a transfer in a thread: it waits for the disk as much as for the network."""

        def run() -> T:
            with Transport(
                self.service.url, self.service.key, timeout=self.timeout, retry=self.retry
            ) as transport:
                return work(transport)

        return await asyncio.to_thread(run)


class AsyncJobs:
    """Submit jobs, follow them, fetch what they made; see ``Jobs``."""

    def __init__(self, client: AsyncStiefel) -> None:
        self._client = client

    async def submit(
        self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Any
    ) -> Job:
        """Submit a job."""
        call = calls.submit_job(spec, idempotency_key=idempotency_key, **options)
        return (await self._client.call(call)).job

    async def plan(self, spec: Mapping[str, Any], **options: Any) -> Plan:
        """What the job would do, without doing it."""
        return await self._client.call(calls.plan_job(spec, **options))

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._client.call(calls.get_job(job_id))

    async def list(
        self,
        *,
        status: Sequence[str] = (),
        label: Sequence[str] = (),
        batch: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[Job]:
        """One page of jobs, newest first."""
        return await self._client.call(
            calls.list_jobs(status=status, label=label, batch=batch, after=after, limit=limit)
        )

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end without its result."""
        return await self._client.call(calls.act_on_job(job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        """Ask a job to stop at its next checkpoint and keep its place."""
        return await self._client.call(calls.act_on_job(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return await self._client.call(calls.act_on_job(job_id, "resume"))

    async def retry(self, job_id: str) -> Job:
        """Let a failed or cancelled job start again; see ``Jobs.retry``."""
        return await self._client.call(calls.act_on_job(job_id, "retry"))

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait until the job is finished; see ``Jobs.wait``."""
        look = calls.looking_at_job(job_id)
        steps = wait_steps(job_id, look, timeout=timeout, on_change=on_change)
        return await drive_async(self._client.call, steps)

    def events(
        self, job_id: str, *, after: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """Every event beyond ``after``, live, until the job is finished; see ``Jobs.events``."""
        service = self._client.service
        return follow_async(self._client, Following(service, job_id, after=after, timeout=timeout))

    async def attempts(self, job_id: str) -> Any:
        """Every attempt, with the reason it ended."""
        return await self._client.call(calls.job_part(job_id, "attempts"))

    async def metrics(self, job_id: str) -> Any:
        """Every series of figures that the job reported."""
        return await self._client.call(calls.job_part(job_id, "metrics"))

    async def checkpoints(self, job_id: str) -> Any:
        """Every point from which the job could go on."""
        return await self._client.call(calls.job_part(job_id, "checkpoints"))

    async def download(
        self, job: Job, folder: str | Path, *, on_bytes: OnBytes | None = None
    ) -> builtins.list[Path]:
        """Fetch every file of a finished job into ``folder``; see ``Jobs.download``."""
        return await self._client.in_thread(
            lambda transport: transfers.download_job(
                transport, job, Path(folder), on_bytes=on_bytes
            )
        )

    async def download_checkpoint(
        self,
        job_id: str,
        folder: str | Path,
        *,
        number: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> builtins.list[Path]:
        """Fetch a checkpoint's files; see ``Jobs.download_checkpoint``."""
        return await self._client.in_thread(
            lambda transport: download_checkpoint(
                transport, job_id, Path(folder), number=number, on_bytes=on_bytes
            )
        )


class AsyncUploads:
    """Bring files to the service; see ``Uploads``."""

    def __init__(self, client: AsyncStiefel) -> None:
        self._client = client

    async def upload(self, path: str | Path, *, on_bytes: OnBytes | None = None) -> Artifact:
        """Upload a file in parts; the same file is never sent twice."""
        return await self._client.in_thread(
            lambda transport: transfers.upload(transport, Path(path), on_bytes=on_bytes)
        )

    async def abort(self, upload_id: str) -> None:
        """Drop an upload and its parts."""
        await self._client.call(calls.abort_upload(upload_id))


class AsyncArtifacts:
    """Files that the service keeps; see ``Artifacts``."""

    def __init__(self, client: AsyncStiefel) -> None:
        self._client = client

    async def get(self, artifact_id: str) -> Artifact:
        """One artifact's record."""
        return await self._client.call(calls.get_artifact(artifact_id))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[Artifact]:
        """One page of artifacts, newest first."""
        return await self._client.call(calls.list_artifacts(after=after, limit=limit))

    async def delete(self, artifact_id: str) -> None:
        """Delete an artifact."""
        await self._client.call(calls.delete_artifact(artifact_id))

    async def download(
        self, artifact: Artifact | str, path: str | Path, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch an artifact's bytes to ``path``; see ``Artifacts.download``."""
        found = await self.get(artifact) if isinstance(artifact, str) else artifact
        source = calls.artifact_content(found.id)
        return await self._client.in_thread(
            lambda transport: transfers.download(
                transport, source, Path(path), sha256=found.sha256, on_bytes=on_bytes
            )
        )


class AsyncMethods:
    """What the service can do; see ``Methods``."""

    def __init__(self, client: AsyncStiefel) -> None:
        self._client = client

    async def list(self) -> list[Method]:
        """Every method on offer."""
        return await self._client.call(calls.list_methods())

    async def get(self, name: str) -> Method:
        """One method with the JSON Schema of its spec."""
        return await self._client.call(calls.get_method(name))
