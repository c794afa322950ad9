"""A box in which an attacker has Python, and so every system call. The host lends the box its own Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.runtime import BoxRef, BoxRuntime, Mount

from .sites import collect

_LENT = tuple(dict.fromkeys(path for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if Path(path).exists()))
LENT = tuple(Path(os.path.realpath(path)) for path in _LENT)  # to be allowed to boxes
PYTHON = os.path.realpath(sys.executable)

MOUNTS = tuple(Mount(path, host_path=path, read_only=True) for path in _LENT)  # what Python needs, at its usual places

_PRELUDE = """
import ctypes, errno, fcntl, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def tried(do):
    try:
        answer = do()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    if isinstance(answer, int) and answer == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "done"
"""


def command(program: str) -> tuple[str, ...]:
    """The command that runs the Python program in the box, see `attack`."""
    return (PYTHON, "-I", "-S", "-c", _PRELUDE + program)


def attack(runtime: BoxRuntime, box: BoxRef, program: str, *, user: str = "") -> str:
    """What the Python program prints in the box, without the last line's end. `tried(f)` in it is `done`, or the name
    of the error of the system call."""
    out, err, code = collect(runtime.spawn(box, ExecSpec(command(program), user=user)))
    assert code == 0, (out, err)
    return out.decode().removesuffix("\n")
