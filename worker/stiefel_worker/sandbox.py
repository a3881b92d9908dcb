"""What a child process gives up before it reads a byte of anybody's data.

Each measure is taken where the kernel allows it; what it refuses is reported, so that the worker's
log and ``stiefel doctor`` can say how well children are confined on this machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stiefel_worker import landlock
from stiefel_worker.readable import readable

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x00020000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
OPEN_FILES = 4096
NICENESS = 5  # supervisors keep their heartbeat even when children use every core

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the folder that libraries expect

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Confinement:
    """What was achieved; ``gaps`` names each measure that the kernel refused, with its reason."""

    network: bool
    files: bool
    gaps: tuple[str, ...] = ()


def enter(
    scratch: Path, *, private: Iterable[str], data_limit: int | None, loopback: bool = False
) -> Confinement:
    """Give up privileges, network and foreign files; call while the process has one thread.

    Args:
        scratch: the only folder that stays writable.
        private: what may not be read, wherever it lies.
        data_limit: bytes of private memory the process may map; None where a device driver
            maps far more than it uses.
        loopback: the processes of this job talk to each other over TCP. They may where the
            network is theirs alone; where the kernel refuses that, there is no TCP at all.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _limit_resources(data_limit)
    gaps: list[str] = []
    network = _attempt("network namespace", _leave_network, gaps)
    _attempt("shared memory of its own", _leave_shared_memory, gaps)
    inside = loopback and network and _attempt("loopback", _raise_loopback, gaps)
    files = _attempt("landlock", lambda: _confine_files(scratch, private, tcp=inside), gaps)
    return Confinement(network or (files and landlock.abi() >= 4), files, tuple(gaps))


def _attempt(name: str, measure: Callable[[], None], gaps: list[str]) -> bool:
    try:
        measure()
    except OSError as error:
        gaps.append(f"{name}: {error.strerror or error}")
        return False
    return True


def _limit_resources(data_limit: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if data_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
    os.nice(NICENESS)


def _leave_network() -> None:
    """Enter a network namespace without any interface, in a user namespace where need be."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        # The same ids inside as outside, so that files keep their owner's name; without the map
        # the process is nobody by name only, which harms nothing.
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    elif _libc.unshare(CLONE_NEWNET) != 0:
        _raise_errno()


def _leave_shared_memory() -> None:
    """Put an empty folder of this process and its children in the place of the machine's."""
    if _libc.unshare(CLONE_NEWNS) != 0:
        _raise_errno()
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", SHARED_MEMORY, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    if _libc.mount(*texts, ctypes.c_ulong(flags), None) != 0:
        _raise_errno()


def _raise_errno() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def _raise_loopback() -> None:
    """Bring up ``lo`` of the namespace just entered; nothing outside can be reached through it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def _confine_files(scratch: Path, private: Iterable[str], *, tcp: bool) -> None:
    if landlock.abi() == 0:
        raise OSError(0, "not offered by this kernel")
    devices = [Path(entry) for entry in (*DEVICES, SHARED_MEMORY)]
    devices += Path("/dev").glob("nvidia*")
    landlock.restrict(read=readable(private), write=[scratch, *devices], tcp=tcp)


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
