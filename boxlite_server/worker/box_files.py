"""The seam for the files of a box, whether it runs or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, NamedTuple, Protocol

from ..rpc import CHUNK_BYTES


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"  # a device, a pipe, a socket


@dataclass(frozen=True, slots=True)
class FileState:
    """What is at a path. `target`: the path in the box that a link leads to in the end, whether that exists or not."""

    kind: FileKind
    target: str = ""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What is at a path; a link is not followed. `size`: bytes of a file; 0 for all else. `mode`: permissions alone.
    `modified`: nanoseconds since 1970. `text`: where a link leads, as it was made."""

    name: str
    kind: FileKind
    size: int
    mode: int
    modified: int
    text: str = ""

    @property
    def version(self) -> str:
        """Text that changes with the content of a file: each write changes its time."""
        return f"{self.modified:x}-{self.size:x}"


class Listing(NamedTuple):
    """Entries of a directory in the order of the bytes of their names, and whether there are more behind them."""

    entries: list[FileEntry]
    more: bool


class ArchiveStream(Protocol):
    """A tar archive that can be read once. Raises `EngineError` when the engine breaks it off."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Let go of the archive, from any thread. Repeating this is harmless."""


class WholeArchive:
    """An `ArchiveStream` in memory, whose reader holds up nobody."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), CHUNK_BYTES):
            yield self._content[start : start + CHUNK_BYTES]

    def close(self) -> None:
        pass


class FilePart(NamedTuple):
    """`size` bytes of an open file from `position` on. The kernel can copy them past this process."""

    file: IO[bytes]
    position: int
    size: int


class BoxFiles(Protocol):
    """The files of one box, whether it runs or not.

    Paths are absolute and clean, and never leave the box: the engine follows links inside it, except a link at the
    end of a path. An engine may hold up all other calls about the box while an archive is under way, so both ends
    have to be fast.
    """

    def owner(self) -> tuple[int, int] | None:
        """(uid, gid) of the box's user; None where the box's image does not tell."""

    def stat(self, path: str) -> FileState | None:
        """What is at `path`; None: nothing. Raises `InvalidStateError` where links lead in a circle."""

    def describe(self, path: str) -> FileEntry | None:
        """What is at `path`, with all that is known of it; None: nothing. Raises as `stat` does."""

    def entries(self, path: str, after: str, count: int) -> Listing:
        """The first `count` entries of a directory whose names come behind `after`, or fewer. Their times are in whole
        seconds. Raises `NotFoundError`, and `InvalidStateError` for a directory that is too large to be listed."""

    def put(self, directory: str, archive: Iterable[bytes | FilePart]) -> None:
        """Unpack a tar archive made by this worker below an existing directory.

        Files are replaced. A link is replaced too, not followed. Directories are merged, and take the archive's
        mode and owner. Raises `InvalidStateError` where a directory would replace something else, or the reverse,
        and `ResourceExhaustedError` when the box's disk is full; the entries before that point are unpacked then.
        """

    def replaceable(self) -> frozenset[str]:
        """Paths of files that belong to the runtime, so that `put` cannot replace them, but `replace` can."""

    def replace(self, path: str, content: bytes) -> None:
        """Replace the content of one of the `replaceable` files. It stays through restarts of the box."""

    def get(self, path: str) -> ArchiveStream:
        """The file, or the directory and all below it, under the path's last name.

        A `path` that ends in `/.` gives the directory's content, and the directory itself as `.`. Raises
        `NotFoundError`.
        """

    def close(self) -> None:
        """Let go of what the calls have made use of. Nothing else is called after that."""
