"""What a child cannot do, tried by a child; and what it is never told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from crew import Site, embedded_site

from stiefel_worker import landlock
from stiefel_worker.children import scrub_environment


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    made: Site = embedded_site(tmp_path_factory.mktemp("probe"))
    secrets = {"AWS_SECRET_ACCESS_KEY": "hunter2", "HF_TOKEN": "hunter2", "PGPASSWORD": "hunter2"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            made.start(**secrets, STIEFEL_S3_SECRET_ACCESS_KEY="hunter2")
            port = str(server.getsockname()[1])
            yield json.loads(made.read(made.wait(made.submit("probe", text=port)), "report.json"))
        finally:
            made.close()


def test_the_environment_holds_no_secret(report: dict[str, object]) -> None:
    environment = report["environment"]
    assert isinstance(environment, dict)
    assert "hunter2" not in environment.values()
    assert [name for name in environment if name.startswith("STIEFEL_")] == ["STIEFEL_PLUGINS"]


@pytest.mark.parametrize("deed", ["connect", "bind"])
def test_there_is_no_network(report: dict[str, object], deed: str) -> None:
    assert report[deed] in {"PermissionError", "OSError"}


@pytest.mark.parametrize(
    "deed", ["read_data_dir", "read_passwords", "read_parent", "signal_parent", "write_code"]
)
def test_the_rest_of_the_machine_is_out_of_reach(report: dict[str, object], deed: str) -> None:
    assert landlock.abi() >= 6, "the sandbox cannot be tested on this kernel"
    assert report[deed] == "PermissionError"


def test_its_own_folder_is_writable(report: dict[str, object]) -> None:
    assert report["write_state"] == "done"
    assert report["session_leader"] is True
    assert report["threads"] == 1


def test_scrubbing_keeps_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STIEFEL_DATABASE_URL", "AWS_PROFILE", "MY_API_KEY", "PGHOST"):
        monkeypatch.setenv(name, "x")
    for name in ("STIEFEL_PLUGINS", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "x")
    import os

    before = dict(os.environ)
    scrub_environment()
    gone = set(before) - set(os.environ)
    os.environ.update(before)
    assert {"STIEFEL_DATABASE_URL", "AWS_PROFILE", "MY_API_KEY", "PGHOST"} <= gone
    assert not gone & {"STIEFEL_PLUGINS", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH"}


def test_the_worker_itself_never_loads_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, stiefel_worker.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
