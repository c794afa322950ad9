"""`boxlite-server dev`: runs a coordinator and one worker as two processes, says what to do next, and ends both."""

from __future__ import annotations

import http.client
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from .. import signals
from ..client.connection import DEFAULT_URL
from ..errors import BoxliteError
from . import machine
from .doctor import engine

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL for each process
POLL_SECONDS = 0.1
LOG = "dev.log"  # in the home

_WELCOME = """\
BoxLite is ready.

  Run a command in a new box, in another terminal:

    {boxlite} run --rm {image} echo hello

  Web page      {url}/ui/
  API           {url}/v1/
  Swagger UI    {url}/swagger-ui/
  Log           {log}

Ctrl-C ends it. Boxes run on, and are there again after the next start."""


def run(port: int, home: Path, *, debug: bool, unfiltered: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, or until one of the processes ends. The exit code is 0 only after a signal.
    `unfiltered`: make no network and no packet filter for the boxes. Raises BoxliteError where nothing can be started.
    """
    _check(port)
    if reason := "as asked" if unfiltered else machine.cannot_filter():
        log.warning("boxes reach each other and this machine: %s (--unfiltered-network)", reason)
    home.mkdir(parents=True, exist_ok=True)
    cluster = _Cluster(port, home, ["--debug"] if debug else [], filtered=not reason)
    signals.keep_from_children()
    signal.signal(signal.SIGTERM, cluster.stop)
    signal.signal(signal.SIGINT, cluster.stop)
    if cluster.start():
        print(welcome(port, home), flush=True)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    codes = cluster.end()
    if cluster.is_stopped:
        return 0
    log.error("one of coordinator and worker ended by itself, exit codes %s; the end of the log:", codes)
    print("\n".join(cluster.log.read_text(errors="replace").splitlines()[-8:]), file=sys.stderr)
    return 1


def welcome(port: int, home: Path, image: str = "alpine:latest") -> str:
    """What a user does next."""
    url = f"http://127.0.0.1:{port}"
    return _WELCOME.format(url=url, boxlite=_client(url), image=image, log=home / LOG)


class _Cluster:
    """The two processes. Both write to one log, which begins anew."""

    def __init__(self, port: int, home: Path, flags: list[str], *, filtered: bool) -> None:
        self.log = home / LOG
        self.is_stopped = False
        self._port = port
        self._coordinator = ["coordinator", "--port", str(port), "--db-path", str(home / "coordinator.db"), *flags]
        # The worker takes any free ports: only the coordinator beside it calls it.
        self._worker = ["worker", "--coordinator", f"http://127.0.0.1:{port}", "--home", str(home), *flags]
        self._worker += ["--port", "0", "--health-port", "0", "--publish-ports", "1024-65535"]
        self._worker += [] if filtered else ["--unfiltered-network"]
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> bool:
        """Start both, and wait until they can take boxes. Returns False if one of them has ended before that, or was
        told to."""
        self.log.write_bytes(b"")
        return self._begin(self._coordinator, "/v1/health") and self._begin(self._worker, "/v1/health/ready")

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Tell both to end."""
        self.is_stopped = True
        for child in self._children:
            child.terminate()

    def end(self) -> list[int]:
        """End both, and return their exit codes."""
        for child in self._children:
            child.terminate()
        return [_end(child) for child in self._children]

    def _begin(self, command: list[str], path: str) -> bool:
        if self.is_stopped:
            return False
        with self.log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "boxlite_server", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches it only once, through `stop`
            )
        self._children.append(child)
        while not _answers(self._port, path):
            if self.is_stopped or any(each.poll() is not None for each in self._children):
                return False
            time.sleep(POLL_SECONDS)
        return True


def _answers(port: int, path: str) -> bool:
    """Whether the coordinator on this port of loopback answers a GET of the path with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _check(port: int) -> None:
    """Raise BoxliteError where no engine answers, or another program has the port."""
    if missing := engine.missing(engine.docker_host()):
        raise BoxliteError(f"{missing.text}; what mends it: {missing.remedy}")
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        raise BoxliteError(f"port {port} is taken; is a coordinator running already? --port names another one")


def _client(url: str) -> str:
    """How `boxlite` is called here: by its path where PATH has none or another one, and with the address where it would
    call another one."""
    beside, found = Path(sys.executable).with_name("boxlite"), shutil.which("boxlite")
    if not beside.exists():
        words = [sys.executable, "-m", "boxlite_server.client"]
    else:
        words = ["boxlite" if found and beside.samefile(found) else str(beside)]
    if url != (os.environ.get("BOXLITE_REST_URL") or DEFAULT_URL):
        words += ["--url", url]
    return shlex.join(words)


def _end(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
