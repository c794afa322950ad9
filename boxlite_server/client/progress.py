"""A progress bar for transfers, shown on stderr if that is a terminal.

with Bar("web.tar", total=size) as bar:
    for chunk in bar.over(chunks):
        ...
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TextIO

_INTERVAL = 0.1  # seconds between two drawings
_BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


class Bar:
    """One line that shows how many bytes were transferred and how fast.

    `total` is in bytes, or None while it is unknown. Nothing is written unless `stream` is a terminal. The line
    is erased when the transfer fails, and stays with the final count when it succeeds. `clock` is monotonic, in
    seconds.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.count = 0
        self._stream = sys.stderr if stream is None else stream
        self._visible = self._stream.isatty()
        self._clock = clock
        self._begun = clock()
        self._drawn: float | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._visible:
            return
        if kind is None:
            self._draw()
            self._stream.write("\n")
        elif self._drawn is not None:
            self._stream.write(_CLEAR)
        self._stream.flush()

    def advance(self, count: int) -> None:
        """Add `count` bytes to those transferred."""
        self.update(self.count + count)

    def update(self, count: int, total: int | None = None) -> None:
        """Set the number of bytes transferred to `count`, and the total to `total` if given."""
        self.count = count
        self.total = total or self.total
        if self._visible and (self._drawn is None or self._clock() - self._drawn >= _INTERVAL):
            self._draw()

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the chunks, and count each once it is consumed."""
        for chunk in chunks:
            yield chunk
            self.advance(len(chunk))

    def line(self) -> str:
        """The text of the line: label, bar and percentage (if the total is known), bytes, bytes per second."""
        rate = f"{size(self.count / max(self._clock() - self._begun, 1e-3))}/s"
        if not self.total:
            return f"{self.label}  {size(self.count)}  {rate}"
        share = min(self.count / self.total, 1.0)
        done = int(share * _BAR_WIDTH)
        bar = "=" * done + (">" if done < _BAR_WIDTH else "") + " " * (_BAR_WIDTH - done - 1)
        return f"{self.label}  [{bar}] {share:4.0%}  {size(self.count)} / {size(self.total)}  {rate}"

    def _draw(self) -> None:
        self._drawn = self._clock()
        columns = shutil.get_terminal_size().columns
        self._stream.write(_CLEAR + self.line()[: columns - 1])
        self._stream.flush()


def size(count: float) -> str:
    """Format a number of bytes: `512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
