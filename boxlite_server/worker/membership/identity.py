"""The worker's identity: a file in its home, so that a restarted or moved worker keeps its name and boxes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from ... import ids
from ...errors import BoxliteError, UpstreamUnavailableError
from ..runtime import Owner

FILE_NAME = "worker.json"
LOCK_NAME = "worker.lock"


@dataclass
class Identity:
    """Who this worker is. `id` and `secret` are minted once; `cluster_id` is learnt at the first registration."""

    path: Path
    id: str
    name: str
    name_given: bool  # the operator chose the name: the worker must not change it
    secret: str
    cluster_id: str | None = None

    @classmethod
    def load(cls, home: Path, name: str | None, rng: random.Random) -> Self:
        """Read the identity in `home`, or make a new one. `name`, if given, replaces the name.

        A new or changed identity is written. Raises `BoxliteError` when the file is damaged or cannot be written.
        """
        path = home / FILE_NAME
        try:
            identity = cls(path=path, **json.loads(path.read_text()))
            known = replace(identity)
        except FileNotFoundError:
            identity, known = cls(path, ids.new_id(), ids.worker_name(rng), False, ids.secret()), None
        except (ValueError, TypeError) as exc:
            raise BoxliteError(f"{path} is damaged ({exc}); restore it, or remove it to start as a new worker") from exc
        if name:
            identity.name, identity.name_given = name, True
        if identity != known:  # a worker whose identity is unchanged starts even when its disk is full
            try:
                identity.save()
            except OSError as exc:
                raise BoxliteError(f"{path} cannot be written: {exc.strerror or exc}") from exc
        return identity

    def save(self) -> None:
        """Replace the file atomically; only its owner may read it."""
        fields = asdict(self)
        del fields["path"]
        # mkstemp creates the file with mode 0600.
        fd, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{FILE_NAME}-")
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(fields, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise

    def rename(self, rng: random.Random) -> None:
        """Take another generated name."""
        self.name = ids.worker_name(rng)
        self.save()

    def join(self, cluster_id: str) -> None:
        """Record that the worker belongs to the cluster `cluster_id` from now on."""
        if cluster_id != self.cluster_id:
            self.cluster_id = cluster_id
            self.save()

    def owner(self) -> Owner:
        """The owner of this worker's boxes. Raises `UpstreamUnavailableError` before the first registration."""
        if self.cluster_id is None:
            raise UpstreamUnavailableError(f"worker {self.name} has not registered with its coordinator yet")
        return Owner(self.cluster_id, self.id)


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Lock the home for this process for the duration of the `with` block. A missing home is made.

    Raises `BoxliteError` when another process holds the lock, or when the home cannot be used.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (home / LOCK_NAME).open("w")
    except OSError as exc:
        raise BoxliteError(f"the worker's home cannot be used: {exc}") from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BoxliteError(f"another worker runs with the home {home}; give this one its own --home") from exc
        yield
