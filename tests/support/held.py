"""What a process holds at a moment, according to the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """`memory` is in KiB."""

    descriptors: int
    threads: int
    memory: int

    def __str__(self) -> str:
        return f"{self.descriptors} fds {self.threads} thr {self.memory // 1024} MiB"


def held_by(pid: int) -> Held:
    """What the process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Held(descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]))


def holder_of(home: Path) -> int:
    """The pid of the process that keeps the connections of the worker with this home."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 3 and words[-3].endswith(b"/holder.py") and words[-2] == str(home).encode():
            return int(process.name)
    raise AssertionError(f"no holder process for {home}")
