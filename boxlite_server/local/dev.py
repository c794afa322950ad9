"""`boxlite-server dev`: runs a coordinator and one worker as two processes, and ends them together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from .. import signals
from . import machine

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL for each process


def run(port: int, home: Path, *, debug: bool, unfiltered: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, or until one of the processes ends. The exit code is 0 only after a signal.
    `unfiltered`: make no network and no packet filter for the boxes."""
    flags = ["--debug"] if debug else []
    coordinator = ["coordinator", "--port", str(port), "--db-path", str(home / "coordinator.db"), *flags]
    # The worker takes any free ports: only the coordinator beside it calls it.
    worker = ["worker", "--coordinator", f"http://127.0.0.1:{port}", "--home", str(home), *flags]
    worker += ["--port", "0", "--health-port", "0", "--publish-ports", "1024-65535"]
    if reason := "as asked" if unfiltered else machine.cannot_filter():
        log.warning("boxes reach each other and this machine: %s (--unfiltered-network)", reason)
        worker += ["--unfiltered-network"]
    children: list[subprocess.Popen[bytes]] = []
    signalled = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        for child in children:
            child.terminate()

    signals.keep_from_children()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for command in (coordinator, worker):
        # Each child has its own session: Ctrl-C reaches it only once, through `stop`.
        children.append(subprocess.Popen([sys.executable, "-m", "boxlite_server", *command], start_new_session=True))
    _await_first_end()
    for child in children:
        child.terminate()
    for child in children:
        _end(child)
    codes = [child.returncode for child in children]
    if signalled:
        return 0
    log.error("one of coordinator and worker ended by itself, exit codes %s", codes)
    return 1


def _await_first_end() -> None:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
