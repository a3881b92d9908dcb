"""Checks of this machine and of the service, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stiefel_client.client import Stiefel
from stiefel_client.errors import StiefelApiError, StiefelClientError
from stiefel_client.locate import data_dir
from stiefel_client.retries import RetryPolicy

ENOUGH_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Check:
    """One check. ``needed`` False: worth knowing, but nothing is broken without it."""

    name: str
    ok: bool
    detail: str
    fix: str | None = None
    needed: bool = True


def examine(url: str | None, key: str | None) -> Iterator[Check]:
    """Every check in turn; none of them changes anything."""
    yield _python()
    yield _torch()
    yield _data_dir()
    yield _disk()
    yield _network_namespace()
    yield _memory_limit()
    yield from _service(url, key)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "Install Python 3.11 or newer")


def _torch() -> Check:
    """In a process of its own: a broken torch may end the interpreter."""
    script = (
        "import torch; print(torch.__version__, 'cuda' if torch.cuda.is_available() else 'cpu')"
    )
    ok, detail = _try_python(script)
    fix = "Only a worker needs it: pip install 'stiefel[worker]'"
    return Check("torch", ok, detail, None if ok else fix, needed=False)


def _data_dir() -> Check:
    folder = data_dir()
    ok = os.access(_existing(folder), os.W_OK | os.X_OK)
    fix = None if ok else "Name a writable one in STIEFEL_DATA_DIR"
    return Check("data folder", ok, f"{folder} is {'' if ok else 'not '}writable", fix)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _disk() -> Check:
    free = shutil.disk_usage(_existing(data_dir())).free
    fix = "A conversion needs about three times the checkpoint: make room"
    ok = free >= ENOUGH_BYTES
    return Check("disk", ok, f"{free / 1e9:.1f} GB free", None if ok else fix, needed=False)


def _network_namespace() -> Check:
    """CLONE_NEWUSER | CLONE_NEWNET, tried in a process of its own."""
    script = (
        "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "
        "r = libc.unshare(0x10000000 | 0x40000000); "
        "print('jobs run without a network' if r == 0 else os.strerror(ctypes.get_errno())); "
        "raise SystemExit(r != 0)"
    )
    ok, detail = _try_python(script)
    fix = "Allow user namespaces, or keep the network away from the worker by other means"
    return Check("job network sandbox", ok, detail, None if ok else fix, needed=False)


def _memory_limit() -> Check:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)); "
        "print('address space can be limited')"
    )
    ok, detail = _try_python(script)
    return Check("job memory limit", ok, detail, needed=False)


def _service(url: str | None, key: str | None) -> Iterator[Check]:
    try:
        with Stiefel(url, key, timeout=5.0, retry=RetryPolicy(attempts=1)) as client:
            where = client.service.url
            try:
                who = client.whoami()
            except StiefelApiError as error:
                yield Check("service", error.status < 500, where)
                fix = error.fix or "Set STIEFEL_API_KEY"
                yield Check("key", False, error.detail, fix)
            else:
                yield Check("service", True, where)
                scopes = ", ".join(map(str, who.get("scopes", ())))
                yield Check("key", True, f"tenant {who.get('tenant', '?')}: {scopes}")
    except StiefelClientError as error:
        yield Check("service", False, error.detail, error.fix)


def _try_python(script: str) -> tuple[bool, str]:
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed scripts
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"CUDA_MODULE_LOADING": "LAZY"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    lines = (done.stdout.strip() or done.stderr.strip() or f"exit {done.returncode}").splitlines()
    return done.returncode == 0, lines[-1]
