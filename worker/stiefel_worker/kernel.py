"""What the kernel has done about memory on this machine."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def memory_kills(source: Path = VMSTAT) -> int | None:
    """How many processes it has killed for memory since boot, in any cgroup; None if untold.

    A child that died of SIGKILL while this rose may have died of memory; while it stood still,
    somebody else sent the signal.
    """
    try:
        lines = source.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None
