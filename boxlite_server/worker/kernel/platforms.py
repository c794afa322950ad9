"""Which programs a host runs: those of its own architecture, and others if its kernel has an emulator for them."""

from __future__ import annotations

from pathlib import Path

_ALSO_RUNS = {"amd64": ("386",), "arm64": ("arm",)}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_ELF_MAGIC = "magic 7f454c46"  # of a handler for programs, as opposed to one for scripts or archives


def is_foreign(built_for: str, host: str) -> bool:
    """Whether a host of one architecture runs nothing built for the other without an emulator. Both are written as
    engines write them: ``amd64``; an empty one is not known, and foreign to none."""
    return bool(built_for and host) and built_for != host and built_for not in _ALSO_RUNS.get(host, ())


def has_no_emulator(binfmt: Path = _BINFMT) -> bool:
    """Whether the kernel certainly has no emulator. A process in a container usually cannot see what the kernel has."""
    try:
        handlers = {path.name: path for path in binfmt.iterdir()}
        if "register" not in handlers:
            return False
        texts = [path.read_text() for name, path in handlers.items() if name not in ("register", "status")]
    except OSError:
        return False
    return not any(text.startswith("enabled") and _ELF_MAGIC in text for text in texts)
