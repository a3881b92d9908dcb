"""A running API for tests: the real program in a process of its own, and ways to look into it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from s3_server import free_port
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database, migrate
from stiefel_jobs.records import Claim, NewArtifact
from stiefel_jobs.settings import Settings
from stiefel_jobs.states import State
from stiefel_jobs.store import finish, keys
from stiefel_jobs.store.claim import claim

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass
class House:
    """One service: its address, its first key, and what lies behind it."""

    url: str
    key: str
    settings: Settings
    db: Database
    blobs: Blobs
    pid: int

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        # Loading the authorities for TLS takes longer than most tests, which need none.
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=60, verify=_NO_TLS, **options
        )

    def new_key(self, tenant: str, *scopes: str) -> str:
        """Return a key; of all scopes if none is given."""
        return keys.create_key(self.db, tenant=tenant, name="t", scopes=scopes or keys.SCOPES)[1]

    def work(self, job_id: str) -> Claim:
        """Claim a job as a worker would."""
        claimed = claim(self.db, worker="w", queues=["cpu", "cuda"], job_id=job_id)
        assert claimed is not None
        return claimed

    def deliver(self, job_id: str, files: Mapping[str, bytes], **metrics: float) -> None:
        """Finish a job with these files."""
        held = self.work(job_id)
        new = []
        for name, data in files.items():
            blob = self.blobs.put_stream(held.tenant, [data])
            kind = "json" if name.endswith(".json") else "safetensors"
            new.append(NewArtifact(kind, name, blob.sha256, blob.size))
        fenced: dict[str, Any] = {"job_id": job_id, "fence": held.fence}
        assert finish.begin_finalizing(self.db, **fenced) is State.FINALIZING
        finish.finish(self.db, **fenced, artifacts=new, result={"metrics": metrics})

    def staged(self) -> list[str]:
        return [stored.key for stored in self.blobs.list("staging")]

    def stored(self, tenant: str) -> list[str]:
        return [stored.key for stored in self.blobs.list(f"blobs/{tenant}")]


@contextlib.contextmanager
def running(folder: Path, *, migrated: bool = False, **settings: Any) -> Iterator[House]:
    """Start ``python -m stiefel_api`` with these settings, and stop it in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    if migrated:
        migrate(settings["database_url"])
    port = free_port()
    values = {"data_dir": str(folder / "data"), "api_port": port, **settings}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STIEFEL_")}
    environment |= {f"STIEFEL_{name.upper()}": str(value) for name, value in values.items()}
    command = [sys.executable, "-m", "stiefel_api"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, process, folder / "log")
        chosen = Settings(**values)
        db = Database(chosen.database_url)
        key = keys.create_key(db, tenant="default", name="tests", scopes=keys.SCOPES)[1]
        yield House(url, key, chosen, db, Blobs.of(chosen), process.pid)
        db.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/healthz", verify=_NO_TLS)
            return
        except httpx.TransportError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)


def checkpoint(tensors: Mapping[str, Sequence[int]] | None = None, *, fill: int = 0) -> bytes:
    """Return a safetensors file of float32 tensors of these shapes."""
    shapes = tensors or {"a.weight": [4, 4], "a.bias": [4], "b.weight": [8, 4]}
    entries, position = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        offsets = [position, position + size]
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        position += size
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * position


def put(client: httpx.Client, data: bytes, name: str = "model.safetensors") -> str:
    """Upload a file and return the id of its artifact."""
    answer = client.put(f"/v1/uploads/{name}", content=data)
    assert answer.status_code in {200, 201}, answer.text
    return str(answer.json()["id"])


def arrays() -> bytes:
    """Return an `.npz` file with twenty examples ``x`` of four numbers, and their labels ``y``."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((20, 4), np.float32), y=np.arange(20) % 2)
    return buffer.getvalue()


def order(artifact: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a job on an artifact."""
    options = {k: fields.pop(k) for k in list(fields) if k in TOP}
    spec = {"method": "project.unitary", "input": artifact, "include": ["*.weight"], **fields}
    return {"spec": spec, **options}


TOP = {"labels", "priority", "deadline", "max_attempts", "output_ttl", "device"}


def submit(client: httpx.Client, artifact: str | None = None, **fields: Any) -> dict[str, Any]:
    """Submit a job and return it."""
    answer = client.post("/v1/jobs", json=order(artifact or put(client, checkpoint()), **fields))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is this problem, with all that a problem must have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["type"].endswith(code.replace("_", "-"))
    assert document["title"]
    assert document["detail"]
    assert document["instance"].startswith("/")
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return document
