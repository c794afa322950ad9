"""The names in an archive, as a tree, checked while it grows."""

from __future__ import annotations

import tarfile

from ...errors import InvalidArgumentError
from ..runtime import FileKind

MAX_NAMES = 500_000  # of one archive; a directory without an entry of its own counts too

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


class Names:
    """All names of an archive, each with the directories that it lies in. It takes at most `MAX_NAMES`."""

    def __init__(self) -> None:
        self.top = Node(tarfile.DIRTYPE)
        self._count = 0
        self.directories = 0

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
            self._count += 1
            if self._count > MAX_NAMES:
                raise InvalidArgumentError(f"the archive has more than {MAX_NAMES} names; send it in parts")
            child = node.below[part] = Node(kind)
            self.directories += child.is_dir
        return child

    def find(self, name: str) -> Node | None:
        """The node of a name; "" is the top."""
        node: Node | None = self.top
        for part in name.split("/") if name else ():
            node = node.below.get(part) if node is not None else None
        return node
