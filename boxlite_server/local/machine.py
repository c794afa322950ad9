"""Programs and packages of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..errors import EngineError

SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))  # dockerd and iptables; not in every PATH

log = logging.getLogger(__name__)


def environment() -> dict[str, str]:
    """The environment of programs of the system: this process's own with a longer PATH, and without the API key."""
    inherited = {name: value for name, value in os.environ.items() if name != "BOXLITE_API_KEY"}
    return {**inherited, "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{SBIN}"}


def which(command: str) -> str | None:
    """The path of a command, those of the administrator included."""
    return shutil.which(command, path=environment()["PATH"])


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the system to its end, without input and in plain English."""
    env = {**environment(), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd, env=env
    )


def cannot_filter() -> str:
    """Why a worker of this process's user has no packet filter for its boxes; empty if it can have one."""
    if os.geteuid() != 0:
        return "a packet filter takes root"
    return "" if which("nft") else "nftables is not installed"


@contextlib.contextmanager
def apt_alone() -> Iterator[None]:
    """Be the one process of ours that uses apt: of two, one would fail."""
    directory = os.open("/var/lib/apt", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def apt_install(package: str) -> None:
    """Install a package of Debian or Ubuntu, as root. EngineError says what to do where that cannot be."""
    if os.geteuid() != 0 or which("apt-get") is None:
        raise EngineError(f"{package} is missing; install it (as root on Debian or Ubuntu this is done for you)")
    log.info("installing %s …", package)
    wait = "DPkg::Lock::Timeout=300"
    with apt_alone():
        run("apt-get", "update")  # a failure shows in the next step, with a better text
        done = run("apt-get", "-o", wait, "install", "-y", "--no-install-recommends", package)
    if done.returncode != 0:
        raise EngineError(f"apt-get install {package} failed: {done.stderr.strip()[-2000:]}")
