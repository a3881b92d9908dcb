"""Which folders a child may read: the system's, Python's and the code's, and nothing private."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stiefel_worker.plugins import PLUGINS_VARIABLE

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix/store", "/sys", "/proc/self")
SYSTEM_FILES = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime", "/etc/mime.types"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/version"),
    *("/proc/sys", "/proc/driver", "/proc/devices", "/proc/filesystems", "/proc/modules"),
)


def readable(private: Iterable[str]) -> list[Path]:
    """Return trees and files that hold none of ``private`` (absolute folders, or files).

    ``python -m`` and an empty entry of PYTHONPATH put the current folder on Python's path: the
    home of whoever starts a worker, or ``/``. It is left out; our packages and plug-ins, which may
    lie there, come by themselves.
    """
    hidden = [Path(path).resolve() for path in private]
    on_path = {Path(entry) for entry in sys.path if entry} - {Path.cwd()}
    roots = {Path(sys.prefix), Path(sys.base_prefix), *on_path, *_packages()}
    system = [Path(entry) for entry in (*SYSTEM_FOLDERS, *SYSTEM_FILES)]
    return [part for root in (*sorted(roots), *system) for part in _without(root, hidden)]


def _packages() -> Iterator[Path]:
    """Folders of the code that children run."""
    plugins = os.environ.get(PLUGINS_VARIABLE, "").split(",")
    for name in ("stiefel", "stiefel_worker", *map(str.strip, plugins)):
        if (module := sys.modules.get(name)) is not None and module.__file__:
            yield Path(module.__file__).parent


def _without(folder: Path, hidden: list[Path]) -> Iterator[Path]:
    """``folder``, or those of its parts that do not lead to anything hidden."""
    real = folder.resolve()
    if real in hidden:
        return
    if not any(path.is_relative_to(real) for path in hidden):
        yield folder
        return
    with suppress(OSError):
        for entry in sorted(real.iterdir()):
            if not entry.is_symlink():  # what it points to is asked for where it lies
                yield from _without(entry, hidden)
