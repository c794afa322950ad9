"""The processes of a command in a box, found in /proc of the host and signalled there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# A variable in the environment of each command, with a value of its own. What the command starts inherits the
# variable, even if it leaves the command's session and outlives its parent.
MARK = "BOXLITE_COMMAND"
_MAX_LOOKS = 500  # for processes that start others faster than they can be stopped
_MAX_ENVIRONMENT = 256 * 1024  # bytes of an environment that are searched for the mark


class Found(NamedTuple):
    """A process of this host. `started`, in clock ticks since the host's boot, tells it from a later process with the
    same pid."""

    pid: int
    started: int


class _Entry(NamedTuple):
    found: Found
    parent: int
    session: int
    is_alive: bool  # and not a zombie


def read_proc(pid: int, name: str) -> str:
    """The beginning of a file in /proc; empty if it cannot be read."""
    try:
        with Path(f"/proc/{pid}/{name}").open("rb") as file:
            return file.read(_MAX_ENVIRONMENT).decode(errors="replace")
    except OSError:
        return ""


def is_in(pid: int, container_id: str) -> bool:
    """Whether the process with this pid is one of the container. False too where /proc does not tell."""
    return container_id in read_proc(pid, "cgroup")


def all_in(container_id: str) -> set[int]:
    """The pids of all processes of the container."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return {pid for pid in pids if is_in(pid, container_id)}


def mark_of(pid: int) -> str:
    """The mark in the process's environment; empty where there is none or this worker may not look."""
    prefix = f"{MARK}="
    return next((v.removeprefix(prefix) for v in read_proc(pid, "environ").split("\0") if v.startswith(prefix)), "")


def family(candidates: Iterable[int], pid: int, mark: str) -> set[Found]:
    """The command with this pid and all that it has started, as far as they live and are among the candidates.

    A process belongs to the command that carries the command's mark, is in its session, or descends from a process
    that does. A process that gave up the mark (`env -i`) and the session, and whose parent has ended, is not found.
    """
    entries = [entry for candidate in candidates if (entry := _entry(candidate))]
    belong = {
        entry.found.pid
        for entry in entries
        if pid in (entry.found.pid, entry.session) or (mark and mark_of(entry.found.pid) == mark)
    }
    while more := {e.found.pid for e in entries if e.parent in belong} - belong:
        belong |= more
    return {entry.found for entry in entries if entry.found.pid in belong and entry.is_alive}


def kill_all(find: Callable[[], set[Found]]) -> None:
    """Kill the processes that `find` returns. They are stopped first, until no new ones appear, so that none can start
    another one meanwhile; after `_MAX_LOOKS` looks, those that were found are killed in any case. Raises
    PermissionError where this worker may not signal them."""
    stopped: set[Found] = set()
    for _ in range(_MAX_LOOKS):
        if not (more := find() - stopped):
            break
        for process in more:
            _send(process, signal.SIGSTOP)
        stopped |= more
    for process in stopped:
        _send(process, signal.SIGKILL)


def _send(process: Found, number: int) -> None:
    """Signal the process, if it still lives."""
    with suppress(ProcessLookupError):
        pinned = os.pidfd_open(process.pid)
        try:
            entry = _entry(process.pid)
            if entry is not None and entry.found == process:
                signal.pidfd_send_signal(pinned, number)
        finally:
            os.close(pinned)


def pid_inside(pid: int) -> str | None:
    """The pid that the process has in its own container; None when it has ended."""
    lines = read_proc(pid, "status").splitlines()
    return next((line.split()[-1] for line in lines if line.startswith("NSpid:")), None)


def user_of(pid: int) -> str:
    """The user id with which the process may send and get signals; root's when it has ended."""
    lines = read_proc(pid, "status").splitlines()
    return next((line.split()[1] for line in lines if line.startswith("Uid:")), "0")


def is_alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    entry = _entry(pid)
    return entry is not None and entry.is_alive


def child_inside(pids: Collection[int], inside: int) -> tuple[int, int]:
    """The process that has the pid `inside` in its own container, and its parent, where each is 0 if it is not among
    `pids`. The process itself may be a zombie, which no control group lists."""
    everybody = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    for pid in everybody:
        entry = _entry(pid)
        is_known = entry is not None and (pid in pids or entry.parent in pids)
        if entry and is_known and pid_inside(pid) == str(inside):
            return (pid if pid in pids else 0), (entry.parent if entry.parent in pids else 0)
    return 0, 0


def output_pipes(processes: set[Found], box_pid: int) -> Iterator[int]:
    """A new descriptor, to read from, for each pipe to the engine that these processes have as their output.

    `box_pid`: the pid of the container's init process, whose parent reads the pipes for the engine. Raises
    PermissionError where this worker may not look.
    """
    init = _entry(box_pid)
    engines = _pipes(init.parent) if init else set()
    opened = set()
    for process in processes:
        for number in (1, 2):
            path = Path(f"/proc/{process.pid}/fd/{number}")
            with suppress(OSError):
                pipe = str(path.readlink())
                if pipe in engines and pipe not in opened:
                    yield os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    opened.add(pipe)


def _pipes(pid: int) -> set[str]:
    """The pipes that the process has open."""
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(path.readlink()))
    return {name for name in found if name.startswith("pipe:")}


def _entry(pid: int) -> _Entry | None:
    fields = read_proc(pid, "stat").rpartition(")")[2].split()
    if not fields:
        return None
    return _Entry(Found(pid, int(fields[19])), int(fields[1]), int(fields[3]), fields[0] not in "ZX")
