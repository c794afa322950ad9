"""The names in an archive, as a tree, checked while it grows."""

from __future__ import annotations

import tarfile
import threading

from ...errors import InvalidArgumentError, ResourceExhaustedError
from ..runtime import FileKind

MAX_NAMES = 500_000  # of one archive; a directory without an entry of its own counts too
MAX_BYTES = 64 * 1024 * 1024  # of the names of one archive, each counted once
MAX_NAMES_AT_ONCE = 1_000_000  # of all archives that are being checked; each takes about 250 bytes of memory

_TAKEN_AT_ONCE = 1000  # names

_NOTHING: dict[str, Node] = {}


class Node:
    """A name in an archive. `kind`: of its entry, as in tar headers; a directory may have none.

    `in_box`: what is known to be there in the box, and `twin` the fingerprint of a file or link that is there; see
    `existing.py`.
    """

    __slots__ = ("below", "in_box", "kind", "twin")

    def __init__(self, kind: bytes) -> None:
        self.kind = kind
        self.below: dict[str, Node] = {} if kind == tarfile.DIRTYPE else _NOTHING
        self.in_box: FileKind | None = None
        self.twin = b""

    @property
    def is_dir(self) -> bool:
        return self.kind == tarfile.DIRTYPE


class Budget:
    """The names that all archives together may hold in memory, at most `MAX_NAMES_AT_ONCE`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, count: int) -> None:
        """Take so many names. Raises `ResourceExhaustedError` when there are not that many left."""
        with self._lock:
            if self._taken + count > MAX_NAMES_AT_ONCE:
                raise ResourceExhaustedError("the worker checks too many large archives just now; try again later")
            self._taken += count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._taken -= count


class Names:
    """All names of an archive, each with the directories that it lies in. It takes at most `MAX_NAMES`, out of a
    `budget` if there is one, which gets them back at the end of the `with` block."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.top = Node(tarfile.DIRTYPE)
        self._budget = budget
        self._taken = 0  # from the budget
        self._count = 0
        self._bytes = 0
        self.directories = 0

    def __enter__(self) -> Names:
        return self

    def __exit__(self, *_: object) -> None:
        if self._budget is not None:
            self._budget.give_back(self._taken)

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, kind: bytes, linkname: str = "") -> bytes:
        """Add an entry. Returns its kind; that of a hard link is the kind of what it leads to, `linkname`.

        Raises `InvalidArgumentError` when the entry lies below something that is no directory, is a directory and
        something else, or is a hard link to no earlier file.
        """
        node, parts = self.top, name.split("/")
        for depth, part in enumerate(parts[:-1], 1):
            node = self._child(node, part, tarfile.DIRTYPE)
            if not node.is_dir:
                raise InvalidArgumentError(
                    f"the archive's entry {name!r} lies below {'/'.join(parts[:depth])!r}, which is no directory there"
                )
        if kind == tarfile.LNKTYPE:
            target = self.find(linkname)
            if target is None or target.kind not in (tarfile.REGTYPE, tarfile.FIFOTYPE):
                raise InvalidArgumentError(f"the archive's hard link {name!r} leads to no earlier file in it")
            kind = target.kind
        found = self._child(node, parts[-1], kind)
        if found.kind != kind and tarfile.DIRTYPE in (found.kind, kind):
            raise InvalidArgumentError(f"the archive's entry {name!r} is a directory and something else")
        found.kind = kind
        return kind

    def _child(self, node: Node, part: str, kind: bytes) -> Node:
        child = node.below.get(part)
        if child is None:
            self._admit(part)
            child = node.below[part] = Node(kind)
            self.directories += child.is_dir
        return child

    def _admit(self, part: str) -> None:
        self._count += 1
        self._bytes += len(part.encode("utf-8", "surrogateescape"))
        if self._count > MAX_NAMES:
            raise InvalidArgumentError(f"the archive has more than {MAX_NAMES} names; send it in parts")
        if self._bytes > MAX_BYTES:
            raise InvalidArgumentError(f"the archive has names of more than {MAX_BYTES} bytes; send it in parts")
        if self._budget is not None and self._count > self._taken:
            self._budget.take(_TAKEN_AT_ONCE)
            self._taken += _TAKEN_AT_ONCE

    def find(self, name: str) -> Node | None:
        """The node of a name; "" is the top."""
        node: Node | None = self.top
        for part in name.split("/") if name else ():
            node = node.below.get(part) if node is not None else None
        return node
