"""An engine of a test's own, to be ended and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from boxlite_server import busybox, engine


class PrivateEngine:
    """A dockerd with its own data; `without_bridge`: also without a default network."""

    def __init__(self, directory: Path, bridge: str) -> None:
        self.directory = directory
        self.docker_host = f"unix://{directory / 'docker.sock'}"
        self._bridge = bridge
        self._dockerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It answers when this returns."""
        # Of one that was killed; its number may be taken, and where nobody reaps, its zombie is there.
        for left in ("pid", "exec/containerd/containerd.pid"):
            (self.directory / left).unlink(missing_ok=True)
        self._dockerd = engine._start(self.directory, self.docker_host, self._bridge, ["--iptables=false"])
        engine._wait_for(self.docker_host, self._dockerd, self.directory / "log")

    def stop(self) -> None:
        """By SIGTERM: it stops all containers before it ends."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """By SIGKILL: the containers run on, until the next start finds them."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It answers nothing, and its connections stay open."""
        assert self._dockerd is not None
        os.kill(self._dockerd.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._dockerd is not None
        os.kill(self._dockerd.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        assert self._dockerd is not None
        self._dockerd.send_signal(number)
        self._dockerd.wait(60)

    def close(self) -> None:
        if self._dockerd is not None and self._dockerd.poll() is not None:
            self.start()  # what it left running ends with it
        if self._dockerd is not None:
            engine._stop(self._dockerd, self.docker_host, self.directory)


@contextlib.contextmanager
def private_engine(image: str, *, without_bridge: bool = False) -> Iterator[PrivateEngine]:
    """One that runs, and has the image of busybox under that name."""
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    try:
        with engine._bridge() as bridge:
            private = PrivateEngine(directory, "none" if without_bridge else bridge)
            try:
                private.start()
                busybox.import_image(private.docker_host, image)
                yield private
            finally:
                private.close()
    finally:
        shutil.rmtree(directory)
