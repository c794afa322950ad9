"""The control group of a container, of either version, as the host's kernel shows it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory.oom_control")  # the files that count kills: version 2, version 1
_FREEZERS = {"cgroup.freeze": "0", "freezer.state": "THAWED"}  # the files that tell, and what they say of a running one


class Cgroup:
    """The control group of a container. Where the host does not show it, as after the container's end, all answers are
    None."""

    def __init__(self, memberships: str, root: Path = ROOT) -> None:
        """`memberships`: the content of /proc/PID/cgroup for a process of the container."""
        self._directories: list[Path] = []
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
        for directory in self._directories:
            for name, thawed in _FREEZERS.items():
                with suppress(OSError):
                    return (directory / name).read_text().strip() != thawed
        return False

    def kills(self) -> int | None:
        """How many processes of the container the kernel has killed because the memory limit was reached."""
        for directory in self._directories:
            for name in _COUNTERS:
                with suppress(OSError, ValueError):
                    for line in (directory / name).read_text().splitlines():
                        key, _, count = line.partition(" ")
                        if key == "oom_kill":
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
