"""This host: its clock, the directory of a worker, and the ports of coordinator and worker."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...worker.kernel.holes import punch_hole
from .findings import Finding, ok, problem, skipped, warning

LITTLE_HOME = 1 << 30  # bytes that are free for transfers and output

_UNSYNCHRONIZED = 5  # TIME_ERROR of <sys/timex.h>


def examine(home: Path, ports: dict[str, int]) -> Iterator[Finding]:
    """Yield what there is to say of the clock, of the worker's `home`, and of `ports`, by who listens on them."""
    yield _clock()
    yield from _home(home)
    for name, port in ports.items():
        yield _port(name, port)


def _clock() -> Finding:
    """The kernel knows whether somebody keeps its clock right."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(
        ctypes.create_string_buffer(512)
    )  # no mode is set: it only reads
    if state < 0:
        return skipped("clock", "the kernel does not say whether its clock is kept right")
    if state == _UNSYNCHRONIZED:
        text = "nothing keeps this host's clock right; keys, certificates and several coordinators depend on it"
        return warning("clock", text, "timedatectl set-ntp true")
    return ok("clock", "this host's clock is kept right")


def _home(home: Path) -> Iterator[Finding]:
    directory = next(each for each in (home, *home.parents) if each.exists())
    if not os.access(directory, os.W_OK):
        yield problem(
            "disk", f"{directory} cannot be written, and a worker's home {home} would lie there", "use --home"
        )
        return
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        text = f"{directory} is mounted noexec: commands in boxes run by the engine's exec, 40 times slower"
        yield warning("disk", text, f"mount -o remount,exec {_mount(directory)}, or another --home")
    if not _knows_holes(directory):
        text = f"{directory} lies on a file system without holes in files: commands with much output are killed"
        yield warning("disk", text, "another --home, on ext4, xfs, btrfs or tmpfs")
    free = shutil.disk_usage(directory).free
    if free < LITTLE_HOME:
        yield warning(
            "disk", f"only {free / 2**30:.1f} GiB are free for the worker's home in {directory}", "a larger disk"
        )
    else:
        yield ok("disk", f"{free / 2**30:.0f} GiB are free for the worker's home in {directory}")


def _mount(directory: Path) -> Path:
    return next(each for each in (directory, *directory.parents) if each.is_mount())


def _knows_holes(directory: Path) -> bool:
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(1 << 16))
        file.flush()
        try:
            punch_hole(file.fileno(), 0, 1 << 16)
        except OSError:
            return False
    return True


def _port(name: str, port: int) -> Finding:
    """Somebody who listens may be the very process that is meant, which `fleet` looks at."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended hold it no longer
        try:
            listener.bind(("", port))
        except PermissionError:
            return problem("ports", f"this user may not listen on the {name}'s port {port}", "use a port above 1023")
        except OSError:
            return ok("ports", f"a program of this host listens on port {port}; it should be the {name}")
    return ok("ports", f"port {port} is free for a {name}")
