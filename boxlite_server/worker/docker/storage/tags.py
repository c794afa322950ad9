"""What the tags of Docker Engine name, without a question to the engine for each box."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ....errors import BoxliteError
from ..engine import Engine, engine_errors

_MOST = 64  # descriptions that are remembered


class Mark(NamedTuple):
    """A state of all tags of an engine, which no other state has."""

    engine_life: str
    inode: int
    changed_ns: int
    size: int


class Tags:
    """Remembers the engine's descriptions of images by their tags.

    The engine has all its tags in one file, and replaces it before it answers that a tag was made, moved or removed. As
    long as the file is the same, each tag names the same image. Nothing is remembered where the worker cannot see the
    file: it is not root, the engine is elsewhere, or keeps its images with containerd.
    """

    def __init__(self, engine: Engine, known_life: Callable[[], str | None]) -> None:
        """`known_life`: the present life of the engine, if it is known without asking."""
        self._engine = engine
        self._known_life = known_life
        self._file: tuple[str, Path | None] = "", None  # in a life of the engine
        self._known: OrderedDict[str, tuple[Mark, dict[str, Any]]] = OrderedDict()

    def mark(self) -> Mark | None:
        """The present state of all tags. None: nobody can tell whether it changes."""
        life = self._known_life()
        if life is None:
            return None
        if self._file[0] != life:
            self._file = life, self._find()
        path = self._file[1]
        try:
            found = path.stat() if path else None
        except OSError:
            found = None
        return found and Mark(life, found.st_ino, found.st_mtime_ns, found.st_size)

    def _find(self) -> Path | None:
        """The file with the tags, as this process sees it."""
        try:
            with engine_errors("cannot ask the engine for its directory"):
                info = self._engine.api.info()
            root = Path(f"/proc/{self._engine.pid}/root") / str(info.get("DockerRootDir")).lstrip("/")
        except BoxliteError:
            return None
        return root / "image" / str(info.get("Driver")) / "repositories.json"

    def get(self, tag: str, mark: Mark | None) -> dict[str, Any] | None:
        """The description of the image that the tag names in the state of `mark`, if it is known."""
        known = self._known.get(tag)
        return known[1] if known and known[0] == mark else None

    def put(self, tag: str, mark: Mark | None, image: dict[str, Any]) -> None:
        """Remember a description that the engine has given after `mark`."""
        if mark is not None:
            self._known[tag] = mark, image
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
