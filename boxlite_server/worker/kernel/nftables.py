"""nftables by its own library, which the program `nft` is made of: to start that program takes thirty times as long. A
process with very many open descriptors starts it nonetheless."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
from functools import cache
from typing import Any

from ...errors import EngineError

_LIBRARY = "libnftables.so.1"
_LOW = 512  # half of what `select` takes: between the look and the call, other threads may open some
_STATELESS, _TERSE = 1 << 2, 1 << 11  # show no counts, and no elements of sets
# Of the kernel's own interface, which the library does not pass on (linux/netfilter/nf_tables.h): the question for the
# generation of the rules, and where the number is in the answer.
_NETFILTER, _GET_GENERATION, _REQUEST, _NUMBER_AT = 12, 10 << 8 | 16, 1, 24
_PATIENCE = 60.0  # seconds for an answer of the kernel
_one = threading.Lock()  # the parser of the library is not made for threads


def run(commands: str, *, dry_run: bool = False) -> str:
    """What commands in the language of `nft` print, carried out as one transaction in the network namespace of the
    calling thread. `dry_run`: the kernel only checks them. Raises OSError, and `EngineError` with the complaint."""
    with _one:
        return _by_library(commands, dry_run) if _has_low_descriptors() else _by_program(commands, dry_run)


def _has_low_descriptors() -> bool:
    """Whether the library's own descriptor will be one that it can use: it calls `select`, which ends the process when
    it is given a descriptor that is too high."""
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor < _LOW


def _by_program(commands: str, dry_run: bool) -> str:
    how = ["nft", "--stateless", "--terse", *(["--check"] if dry_run else []), "--file", "-"]
    done = subprocess.run(how, input=commands, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise _refused(done.stderr)
    return done.stdout


def _by_library(commands: str, dry_run: bool) -> str:
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise OSError("nftables is not there")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _STATELESS | _TERSE)
        library.nft_ctx_set_dry_run(context, dry_run)
        if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
            raise _refused(library.nft_ctx_get_error_buffer(context).decode(errors="replace"))
        return str(library.nft_ctx_get_output_buffer(context).decode(errors="replace"))
    finally:
        library.nft_ctx_free(context)


def _refused(complaint: str) -> EngineError:
    return EngineError(complaint.strip()[-1000:] or "nftables failed")


def generation() -> int:
    """A number that the kernel raises by one with each transaction, whoever makes it, in the network namespace of the
    calling thread. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
        kernel.settimeout(_PATIENCE)
        kernel.send(struct.pack("=IHHII4x", 20, _GET_GENERATION, _REQUEST, 0, 0))
        answer = kernel.recv(4096)
    if len(answer) < _NUMBER_AT + 4:
        raise OSError("nftables tells no generation")
    return int(struct.unpack_from(">I", answer, _NUMBER_AT)[0])


@cache
def _library() -> Any:
    library = ctypes.CDLL(_LIBRARY)
    context, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_ctx_set_dry_run", None, [context, ctypes.c_bool]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, text]),
        ("nft_ctx_get_output_buffer", text, [context]),
        ("nft_ctx_get_error_buffer", text, [context]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
