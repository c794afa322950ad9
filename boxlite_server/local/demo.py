"""`make run`: starts an engine, a coordinator and a worker on this machine, takes one box through its life, and serves.

    python -m boxlite_server.local.demo [--port 8200] [--once]

All data lies in BOXLITE_HOME (default: ~/.boxlite), also that of a private engine, which is started if there is
no other. The exit code is 1 when anything fails; all processes that were started have then ended.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import signals
from ..errors import BoxliteError, ImageError
from . import busybox, dev, dockerd

IMAGE = "alpine:latest"
LOCAL_IMAGE = "boxlite-busybox:latest"
READY_SECONDS = 60.0
STOP_SECONDS = 30.0


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="boxlite_server.local.demo", description="A cluster on this machine.")
    parser.add_argument("--port", type=int, default=8200, help="the coordinator's port (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="exit after the first box (default: serve until Ctrl-C)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signals.keep_from_children()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts as Ctrl-C, and ends all processes
    url = f"http://127.0.0.1:{options.port}"
    home = Path(os.environ.get("BOXLITE_HOME", "~/.boxlite")).expanduser().absolute()
    try:
        with (
            dockerd.ensure_engine(home / "engine") as docker_host,
            _server(options.port, home, docker_host) as server,
        ):
            image = _image(docker_host)
            _job(url, image)
            if options.once:
                return 0
            print(f"\n{dev.welcome(options.port, home, image)}", flush=True)
            server.wait()
            raise BoxliteError(f"the server ended by itself; see {home / dev.LOG}")
    except KeyboardInterrupt:
        return 0
    except BoxliteError as error:
        print(f"failed: {error.message}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"failed: exit code {error.returncode}; see {home / dev.LOG}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _server(port: int, home: Path, docker_host: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `boxlite-server dev` during the `with` block, and wait until it can take boxes."""
    command = ["dev", "--port", str(port)]
    if docker_host != dockerd.private_host(home / "engine"):  # then the network is the host's own, and stays as it is
        command.append("--unfiltered-network")
    print(f"$ boxlite-server {shlex.join(command)} &", flush=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "boxlite_server", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # it says when it is ready
        start_new_session=True,  # Ctrl-C must not reach the server: this process ends it, and then the engine
        env={**os.environ, "DOCKER_HOST": docker_host, "BOXLITE_HOME": str(home)},
    )
    try:
        assert server.stdout is not None
        is_heard = select.select([server.stdout], [], [], READY_SECONDS)[0]
        if not is_heard or not server.stdout.readline():
            raise BoxliteError(f"the server did not start (log: {home / dev.LOG})")
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _image(docker_host: str) -> str:
    """The image for the box: alpine:latest, or a local image if no registry answers."""
    if dockerd.has_image(docker_host, IMAGE):
        return IMAGE
    print(f"Pulling {IMAGE} …", flush=True)
    try:
        dockerd.pull_image(docker_host, IMAGE)
    except ImageError as error:
        print(f"{error.message}\nUsing a small local image instead, {LOCAL_IMAGE}.", flush=True)
        if not dockerd.has_image(docker_host, LOCAL_IMAGE):
            busybox.import_image(docker_host, LOCAL_IMAGE)
        return LOCAL_IMAGE
    return IMAGE


def _job(url: str, image: str) -> None:
    """Create a box, run a command in it, and remove it."""
    box = _boxlite(url, "create", image)
    try:
        if _boxlite(url, "exec", box, "--", "echo", "hello") != "hello":
            raise BoxliteError("the box did not say hello")
    finally:
        _boxlite(url, "rm", "--force", box)


def _boxlite(url: str, *arguments: str) -> str:
    """Run `boxlite` and return what it prints. Raises CalledProcessError when it fails."""
    command = ["--url", url, *arguments]
    print(f"$ boxlite {shlex.join(command)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "boxlite_server.client", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout, end="", flush=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
