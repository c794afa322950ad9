"""Where the program is that runs commands inside boxes."""

from __future__ import annotations

import platform
from pathlib import Path

_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


def program(machine: str = "") -> Path | None:
    """The path of the supervisor built for a machine, by default this one; None where none was built for it."""
    name = (machine or platform.machine()).lower()
    path = Path(__file__).with_name(f"init-{_SAME.get(name, name)}")
    return path if path.is_file() else None
