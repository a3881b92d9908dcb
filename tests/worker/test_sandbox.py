"""What a child cannot do, tried by a child; and what it is never told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crew import Site, embedded_site

import stiefel.unitary
from stiefel_worker import compiled, landlock
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


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, str]]]:
    """Two jobs at once on one worker; what the second could do to the first."""
    made: Site = embedded_site(tmp_path_factory.mktemp("neighbours"))
    try:
        made.start(concurrency=2)
        first = made.submit("snoop", file=made.upload(b"somebody's data").id)
        victim = made.began(first)
        second = made.submit("snoop", text=f"{victim['scratch']}:{victim['pid']}")
        report = json.loads(made.read(made.wait(second), "report.json"))
        assert (Path(victim["scratch"]) / "state" / "mine").read_text() == "secret"
        assert not (Path(victim["scratch"]) / "state" / "planted").exists()
        yield made, report
    finally:
        made.close()


def test_a_job_does_not_reach_its_neighbour_on_the_same_worker(
    neighbours: tuple[Site, dict[str, str]],
) -> None:
    _, report = neighbours
    assert landlock.abi() >= 6, "the sandbox cannot be tested on this kernel"
    assert report.pop("own_state") == "done"
    assert report.pop("shared_memory") == "FileNotFoundError"
    assert set(report.values()) == {"PermissionError"}, report


TALK = """
import socket, sys
from pathlib import Path
from stiefel_worker import sandbox
loopback = sys.argv[3] == "loopback"
scratch = Path(sys.argv[1])
confinement = sandbox.enter(scratch, private=[], data_limit=None, loopback=loopback)
def deed(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return "done"
    except OSError as error:
        return type(error).__name__
try:
    with socket.create_server(("127.0.0.1", 0)) as own:
        print(deed(own.getsockname()[1]), deed(int(sys.argv[2])), confinement.gaps)
except OSError as error:
    print(type(error).__name__, deed(int(sys.argv[2])), confinement.gaps)
"""


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("loopback", "done ConnectionRefusedError ()"), ("alone", "PermissionError ")],
)
def test_processes_of_one_job_may_talk_to_each_other_and_to_nobody_else(
    mode: str, expected: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = str(outside.getsockname()[1])
        command = [sys.executable, "-c", TALK, str(tmp_path), port, mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(expected), done.stdout + done.stderr


def test_a_child_finds_compiled_kernels_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    compiled.lend(tmp_path / "compiled")
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "compiled")
    (folder,) = (tmp_path / "compiled").iterdir()
    assert all(link.is_symlink() and link.exists() for link in folder.iterdir())
    beside = Path(stiefel.unitary.__file__ or "").parent / "__pycache__"
    assert {link.name for link in folder.iterdir()} == {p.name for p in beside.glob("*.nb[ci]")}


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
