"""An engine of a test's own, to be ended, held up, and started again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from boxlite_server.local import busybox, dockerd


class PrivateEngine(dockerd.Dockerd):
    """A dockerd that can also be ended as an administrator would, and held up."""

    def end(self) -> None:
        """By SIGTERM: it stops all containers before it ends."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        self._process.wait(60)

    def pause(self) -> None:
        """It answers nothing, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def private_engine(image: str, *, without_bridge: bool = False) -> Iterator[PrivateEngine]:
    """One that runs, and has the image of busybox under that name; `without_bridge`: without a default network."""
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))  # short, for the sockets in it
    try:
        with dockerd.private_namespace(directory) as own:
            private = PrivateEngine(directory, own, with_bridge=not without_bridge)
            try:
                private.start()
                busybox.import_image(private.docker_host, image)
                yield private
            finally:
                private.stop()
    finally:
        shutil.rmtree(directory)
