"""The links to the supervisors of all boxes of a worker, and the directories that are mounted into the boxes."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .link import Link
from .poller import Poller

MOUNT = "/dev/boxlite"  # where a box has its directory; what is below /dev is in no disk of a box
PROGRAM_NAME = "init"
_PROGRAMS = ".programs"  # below the root: each version of the program


class Links:
    """A directory for each box below `root`, by the name of its container: with the supervisor's program, which all
    boxes share, and the socket that the supervisor dials. `program`: the file to run in boxes."""

    def __init__(self, root: Path, program: Path) -> None:
        self._root = root.absolute()
        self._program = program
        self._kept: Path | None = None  # once it was found by this process
        self._poller = Poller()
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}

    def prepare(self, name: str) -> Path:
        """Make the directory of a box, or find it. Raises OSError."""
        directory = self._root / name
        if not (directory / PROGRAM_NAME).exists():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o755, exist_ok=True)
            directory.chmod(0o755)  # whatever the umask
            with suppress(FileExistsError):
                os.link(self._current(), directory / PROGRAM_NAME)
        return directory

    def _current(self) -> Path:
        """This version of the program on the disk of the root, so that boxes can have links to it. A box's user who is
        not root cannot read it: nobody traces a process that runs what its user cannot read, from its first instruction
        on."""
        if self._kept is not None and self._kept.exists():
            return self._kept
        content = self._program.read_bytes()
        kept = self._root / _PROGRAMS / hashlib.sha256(content).hexdigest()[:16]
        if not kept.exists():
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            new = kept.with_suffix(f".{threading.get_ident()}")
            new.write_bytes(content)
            new.replace(kept)
            for former in kept.parent.iterdir():
                if former != kept and not former.suffix:  # boxes have links of their own
                    former.unlink(missing_ok=True)
        kept.chmod(0o711)
        self._kept = kept
        return kept

    def link(self, name: str) -> Link:
        """The link of a box, which listens. Raises OSError when the box has no directory."""
        with self._lock:
            link = self._links.get(name)
            if link is None:
                link = Link(self._root / name, self._poller)
                link.listen()
                self._links[name] = link
            return link

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function, which does not block, after so many seconds."""
        self._poller.later(seconds, function)

    def known(self, name: str) -> Link | None:
        """The link of a box, if it listens already."""
        return self._links.get(name)

    def names(self) -> list[str]:
        """The containers that have a directory."""
        with suppress(FileNotFoundError):
            return [path.name for path in self._root.iterdir() if path.name != _PROGRAMS]
        return []

    def forget(self, name: str) -> None:
        """Close the link of a box that is gone, and remove its directory."""
        with self._lock:
            link = self._links.pop(name, None)
        if link is not None:
            link.close(gone=True)
        shutil.rmtree(self._root / name, ignore_errors=True)

    def close(self) -> None:
        """Close all links. The boxes stay as they are, and another process may listen."""
        with self._lock:
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()
        self._poller.close()
