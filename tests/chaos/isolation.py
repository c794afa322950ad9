"""Namespaces of processes, mounts and networks in which everything lives.

With the first process of such a namespace the kernel ends all others in it, and with the last one of them go
the networks, the links between them and the mounts. So nothing is left behind, however this program ends, and
no signal of it can reach anybody else's process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from boxlite_server.local import machine

UNSHARE = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--net"]
END_SECONDS = 60.0


def obstacle() -> str | None:
    """Why it cannot be done on this machine; None when it can."""
    if os.geteuid() != 0:
        return "it takes root: it makes network namespaces and starts engines"
    for command, package in (("ip", "iproute2"), ("iptables", "iptables"), ("dockerd", "docker.io"), ("tini", "tini")):
        if machine.which(command) is None:
            machine.apt_install(package)
    tried = machine.run(*UNSHARE, "ip", "link", "add", "lan", "type", "bridge")
    if tried.returncode != 0:
        return f"this machine lets nobody make network namespaces and bridges: {tried.stderr.strip()}"
    return None


def run(command: list[str], cgroup: str) -> int:
    """Run a program in namespaces of its own, and its exit code. SIGINT and SIGTERM are handed on to it once; it
    has then a minute to end."""
    process = subprocess.Popen(
        # The program is killed with us; its init process forwards signals and adopts orphans.
        ["setpriv", "--pdeathsig=KILL", *UNSHARE, "--kill-child=KILL", "tini", "--", *command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches it through us, once
    )
    try:
        return _await(process)
    finally:
        process.kill()
        process.wait()
        _remove_cgroup(cgroup)


def _await(process: subprocess.Popen[bytes]) -> int:
    def hand_on(number: int, _frame: object) -> None:
        signal.alarm(int(END_SECONDS))
        with contextlib.suppress(OSError, ValueError):
            init = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            os.kill(init, number)

    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    return process.wait()


def _remove_cgroup(name: str) -> None:
    """The kernel keeps the groups of containers that nobody removed."""
    for top in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        for directory in [*_below(top), top]:
            with contextlib.suppress(OSError):
                directory.rmdir()


def _below(directory: Path) -> Iterator[Path]:
    """All directories in this one, the deepest first."""
    for child in directory.iterdir():
        if child.is_dir():
            yield from _below(child)
            yield child


def settle_in() -> None:
    """The first steps inside: a /run of our own for the names of networks, and loopback."""
    must("mount", "-t", "tmpfs", "tmpfs", "/run")
    must("ip", "link", "set", "lo", "up")


def must(*command: str) -> None:
    """Run a command of the system; its complaint is the exception's."""
    done = machine.run(*command)
    if done.returncode != 0:
        print(f"failed: {' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
