"""The control group of a container, of either version, as the host's kernel shows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_SMALL_BYTES = 4096
_COUNTERS = ("memory.events", "memory.oom_control")  # the files that count kills: version 2, version 1
_FREEZERS = ("cgroup.freeze", "freezer.state")  # the files that tell whether a container is paused, and
_RUNNING = ("0", "THAWED")  # what they say of one that is not


class Cgroup:
    """The control group of a container. Where the host does not show it, as after the container's end, all answers are
    None."""

    def __init__(self, memberships: str, root: Path = ROOT) -> None:
        """`memberships`: the content of /proc/PID/cgroup for a process of the container."""
        self._directories: list[Path] = []
        self._counter: Path | None = None  # the files that were found to tell
        self._freezer: Path | None = None
        for line in memberships.splitlines():
            _, controllers, path = line.split(":", 2)
            below = [controllers.removeprefix("name=")] if controllers else ["", "unified"]
            self._directories += [root / name / path.lstrip("/") for name in below if path != "/"]

    @classmethod
    def of(cls, pid: int) -> Cgroup:
        """The control group of the container that the process with this pid, on this host, is in."""
        try:
            return cls(Path(f"/proc/{pid}/cgroup").read_text())
        except OSError:
            return cls("")

    def pids(self) -> set[int] | None:
        """The pids of all processes in the container, also of those that moved themselves to groups below."""
        for directory in self._directories:
            with suppress(OSError, ValueError):
                found = (directory / "cgroup.procs").read_text().split()
                for path in directory.glob("*/**/cgroup.procs"):
                    found += path.read_text().split()
                return set(map(int, found))
        return None

    def is_frozen(self) -> bool:
        """Whether the container is paused."""
        if self._freezer is None:
            self._freezer = next((path for path in self._files(_FREEZERS) if _read(path)), None)
        said = _read(self._freezer) if self._freezer else ""
        return bool(said) and said.strip() not in _RUNNING

    def kills(self) -> int | None:
        """How many processes of the container the kernel has killed because the memory limit was reached."""
        if self._counter is None:
            self._counter = next((path for path in self._files(_COUNTERS) if _kills(path) is not None), None)
        return _kills(self._counter) if self._counter else None

    def _files(self, names: Iterable[str]) -> Iterator[Path]:
        return (directory / name for directory in self._directories for name in names)


def weighs_io(version: str, root: Path = ROOT) -> bool:
    """Whether this host's kernel takes a weight of a control group of that version ("1" or "2") for access to disks.

    Version 2 has such files in all groups but the one of the whole host, and a container runtime fails where it is to
    write one that is missing. Of version 1, Docker Engine looks at the file of the whole host.
    """
    if version == "1":
        return (root / "blkio/blkio.weight").exists()
    return any(True for name in ("io.weight", "io.bfq.weight") for _ in root.glob(f"*/{name}"))


def _read(path: Path) -> str:
    """The content of a small file; empty if it cannot be read. Two files are read for each command, so without the
    calls that Python's own files make."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _SMALL_BYTES).decode(errors="replace")
        finally:
            os.close(descriptor)
    except OSError:
        return ""


def _kills(path: Path) -> int | None:
    """What a file that counts kills says."""
    for line in _read(path).splitlines():
        key, _, count = line.partition(" ")
        if key == "oom_kill" and count.isdecimal():
            return int(count)
    return None


class MemoryLimit:
    """Tells whether a container hits its memory limit from now on. `mib`: the limit."""

    def __init__(self, cgroup: Cgroup, mib: int) -> None:
        self._mib = mib
        self._cgroup = cgroup
        self._before = self._cgroup.kills()

    def hit(self) -> int:
        """The limit in MiB, if the kernel has killed a process at it; 0 otherwise, or where that is not known."""
        now = self._cgroup.kills()
        return self._mib if None not in (now, self._before) and now != self._before else 0
