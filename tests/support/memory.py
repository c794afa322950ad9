"""How much memory a process takes, in bytes, according to the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resident(pid: int) -> int:
    return _status(pid, "VmRSS")


class Growth:
    """`peak`: the most that the process has held at once, beyond what it held at first."""

    peak = 0


@contextmanager
def growth(pid: int) -> Iterator[Growth]:
    """The growth of a process during the block, known at its end."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from now on
    before, found = resident(pid), Growth()
    yield found
    found.peak = _status(pid, "VmHWM") - before


def _status(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match, field
    return int(match[1]) * 1024
