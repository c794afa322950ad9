"""How much of what the host's kernel has for all, and boxes share, is in use."""

from __future__ import annotations

from pathlib import Path

from ...errors import ResourceExhaustedError

_FULL = 0.75  # of the process ids; the rest is for the host, the engine and the boxes that run already


def refuse_without_pids(
    loadavg: Path = Path("/proc/loadavg"), pid_max: Path = Path("/proc/sys/kernel/pid_max")
) -> None:
    """Raise `ResourceExhaustedError` when few process ids are left on this host: a box more could take the last."""
    try:
        used = int(loadavg.read_text().split()[3].partition("/")[2])
        limit = int(pid_max.read_text())
    except (OSError, ValueError, IndexError):
        return  # hidden by what the worker runs in
    if used > limit * _FULL:
        raise ResourceExhaustedError(
            f"the worker's host runs {used} processes and threads, of {limit} that it can have (kernel.pid_max)"
        )
