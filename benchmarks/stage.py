"""A whole service on one machine for benchmarks: real API, real workers, real servers.

``embedded``: SQLite, a folder as store, a folder as broker. ``distributed``: PostgreSQL, Redis
and an S3 server, all from wheels, all on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT / "tests"))

from s3_server import free_port, s3_server  # noqa: E402 - found by the path above

PYTHON = sys.executable


@dataclass
class Service:
    """Its environment and processes; ``client`` speaks to the API with a key."""

    folder: Path
    env: dict[str, str]
    client: httpx.Client = field(init=False)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(self, *command: str, log: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a Python process in the service's environment."""
        with (self.folder / log).open("ab") as out:
            process = subprocess.Popen(
                [PYTHON, *command], env=self.env | env, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    def start_worker(
        self, number: int = 0, *, concurrency: int = 1, queues: str = "cpu", wait: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start a worker, by default until it looks for jobs."""
        log = f"worker-{number}-{len(self.processes)}.log"
        options = ("--concurrency", str(concurrency), "--queues", queues)
        worker = self.spawn("-m", "stiefel_worker", *options, log=log)
        if wait:
            wait_for(lambda: "looks at" in (self.folder / log).read_text(), 120)
        return worker

    def start_api(self) -> None:
        """Migrate, create a key, serve, and wait for readiness."""
        port = free_port()
        self.env |= {"STIEFEL_API_PORT": str(port)}
        self.run("-m", "stiefel_api", "migrate")
        key = self.run("-m", "stiefel_api", "create-key").split()[-1]
        self.spawn("-m", "stiefel_api", log="api.log")
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=600,
        )
        wait_for(self._answers, 60)

    def run(self, *command: str) -> str:
        """What a Python command prints."""
        done = subprocess.run(
            [PYTHON, *command], env=self.env, check=True, capture_output=True, text=True
        )
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON, expect success."""
        answer = self.client.post(path, json=body)
        assert answer.is_success, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def get(self, path: str) -> dict[str, Any]:
        """GET JSON, expect success."""
        answer = self.client.get(path)
        assert answer.is_success, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def upload(self, name: str, content: Iterator[bytes], size: int) -> str:
        """Stream a file up; its artifact id."""
        answer = self.client.put(
            f"/v1/uploads/{name}", content=content, headers={"Content-Length": str(size)}
        )
        assert answer.is_success, answer.text
        artifact: str = answer.json()["id"]
        return artifact

    def wait(self, job_id: str, seconds: float = 3600) -> dict[str, Any]:
        """The job once it is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.get(f"/v1/jobs/{job_id}?wait=30")
            if job["status"] in {"succeeded", "failed", "cancelled", "expired"}:
                return job
        raise TimeoutError(job_id)

    def close(self) -> None:
        """Kill every process."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/readyz").is_success
        return False


@contextlib.contextmanager
def service(folder: Path, mode: str, **settings: object) -> Iterator[Service]:
    """Start what ``mode`` needs, without API and workers; ``settings`` are STIEFEL_* by name."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = {name: v for name, v in os.environ.items() if not name.startswith("STIEFEL_")}
    chosen = {f"STIEFEL_{name.upper()}": str(value) for name, value in settings.items()}
    with contextlib.ExitStack() as stack:
        urls = _servers(stack, folder) if mode == "distributed" else {}
        made = Service(folder, clean | {"STIEFEL_DATA_DIR": str(folder / "data")} | urls | chosen)
        stack.callback(made.close)
        yield made


def _servers(stack: contextlib.ExitStack, folder: Path) -> dict[str, str]:
    # Here, so that an embedded service asks for neither.
    from postgres_server import postgres_server
    from redis_server import redis_server

    for name in ("postgres", "redis", "s3"):
        (folder / name).mkdir()
    postgres = stack.enter_context(postgres_server(folder / "postgres"))
    s3 = stack.enter_context(s3_server(folder / "s3"))
    return {
        "STIEFEL_DATABASE_URL": postgres.database(),
        "STIEFEL_BROKER_URL": stack.enter_context(redis_server(folder / "redis")),
        "STIEFEL_STORE_URL": s3.bucket("stiefel"),
        "STIEFEL_S3_ENDPOINT": s3.endpoint,
        "STIEFEL_S3_ACCESS_KEY_ID": s3.access_key,
        "STIEFEL_S3_SECRET_ACCESS_KEY": s3.secret_key,
    }


def wait_for(true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def checkpoint(count: int, side: int, *, one_in: int = 1) -> tuple[int, Iterator[bytes]]:
    """Size and bytes of a safetensors file of ``count`` float32 matrices ``side`` x ``side``.

    One in ``one_in`` is called ``chosen.i.weight``, the others ``other.i.weight``; all are distinct
    random matrices, made as they are read: a file larger than memory costs neither disk nor memory.
    """
    import numpy as np

    nbytes = 4 * side * side
    header = {
        f"{'other' if i % one_in else 'chosen'}.{i}.weight": {
            "dtype": "F32",
            "shape": [side, side],
            "data_offsets": [i * nbytes, (i + 1) * nbytes],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text

    def content() -> Iterator[bytes]:
        yield head
        for i in range(count):
            random = np.random.Generator(np.random.PCG64(i))
            yield random.standard_normal((side, side), dtype=np.float32).tobytes()

    return len(head) + count * nbytes, content()


def environment() -> dict[str, Any]:
    """The machine and the versions a figure was measured with."""
    packages = ("stiefel", "torch", "celery", "kombu", "sqlalchemy", "numpy")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def command_line() -> str:
    """The command that runs, for the head of its result."""
    return shlex.join(["python", *sys.argv])


def publish(
    name: str,
    title: str,
    command: str,
    table: list[dict[str, Any]],
    detail: Any = None,
    **more: Any,
) -> None:
    """Print a table and write it to ``results``; ``detail`` goes to the JSON file alone."""
    facts = environment()
    body = {"command": command, "environment": facts, "rows": table, **more, "detail": detail}
    lines = [f"# {title}", "", f"`{command}`", ""]
    lines.append(", ".join(f"{key} {value}" for key, value in facts.items()))
    for key, value in more.items():
        lines += ["", f"{key}: {json.dumps(value)}"]
    columns = list(table[0])
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in table]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(body, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
