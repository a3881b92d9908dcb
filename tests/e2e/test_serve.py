"""`stiefel serve` as a process: it mends what dies, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
from stacks import clean_environment, embedded

STIEFEL = str(Path(sys.executable).with_name("stiefel"))


def test_it_mends_a_killed_api_and_stops_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('imported from the current folder')")
    with embedded(tmp_path) as stack:
        (serve,) = stack.roots
        wait_until(lambda: stack.workers())
        key_file = tmp_path / ".local" / "share" / "stiefel" / "api_key"
        assert key_file.stat().st_mode & 0o077 == 0
        assert key_file.with_name("api_url").read_text() == stack.url
        (api,) = [p for p in serve.children() if "stiefel_api" in p.cmdline()]
        api.kill()
        with stack.client() as client:
            wait_until(lambda: is_up(stack.url))
            assert client.whoami()["tenant"] == "default"
        family = serve.children(recursive=True)
        serve.send_signal(signal.SIGTERM)
        psutil.wait_procs([serve], timeout=60)
        # A fork server that is loading torch sees that its worker is gone when it has.
        _, left = psutil.wait_procs(family, timeout=60)
        # A zombie runs no more: it waits for the first process of the machine to take note.
        assert [p.cmdline() for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
        assert not key_file.with_name("api_url").exists()
        log = stack.log.read_text()
    assert "api ended with -9; again in" in log
    assert "Traceback" not in log


def test_a_port_that_is_taken_is_bad_use(embedded_stack, tmp_path: Path) -> None:
    port = embedded_stack.url.rpartition(":")[2]
    done = subprocess.run(
        [STIEFEL, "serve", "--port", port, "--data-dir", str(tmp_path)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--port 0" in done.stderr


def test_a_folder_that_is_served_is_left_to_its_service(embedded_stack) -> None:
    folder = embedded_stack.home / ".local" / "share" / "stiefel"
    done = subprocess.run(
        [STIEFEL, "serve", "--port", "0", "--data-dir", str(folder)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "being served already" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "api_url").read_text() == embedded_stack.url


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
