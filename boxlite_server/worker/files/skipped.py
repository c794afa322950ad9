"""What of an upload is not written, for the uploader to hear."""

from __future__ import annotations

from urllib.parse import quote

MAX_TEXT = 4096  # bytes


class Skipped:
    """Counts what is skipped, and names the first of it in at most `MAX_TEXT` bytes."""

    def __init__(self) -> None:
        self._named: list[str] = []
        self._length = 0
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, name: str, attribute: str = "") -> None:
        """Add an entry, or one extended attribute of it."""
        self._count += 1
        if self._length > MAX_TEXT:
            return
        text = quote(name, errors="surrogateescape") or "."
        if attribute:
            text += f"?xattr={quote(attribute, errors='surrogateescape')}"
        self._length += len(text) + 2
        if self._length <= MAX_TEXT - 24:  # room for the number of the others
            self._named.append(text)

    @property
    def text(self) -> str:
        """The names, percent-encoded, with `, ` between them; `+N` stands for N others. An extended attribute is
        `NAME?xattr=ATTRIBUTE`. Empty: nothing was skipped."""
        others = self._count - len(self._named)
        return ", ".join([*self._named, *([f"+{others}"] if others else [])])
