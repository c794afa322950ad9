"""Counts of what the commands of a box have done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ...metrics import worker as metrics


@dataclass(frozen=True, slots=True)
class Counts:
    """What the commands of a box have done. Only the bytes include the main command."""

    commands: int = 0
    errors: int = 0  # commands that could not be started
    input_bytes: int = 0
    output_bytes: int = 0


class Tally:
    """Counts for one box; safe to call from many threads. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._commands = self._errors = self._input = self._output = 0
        self._last_end: float | None = None

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._commands, self._errors, self._input, self._output)

    @property
    def idle_seconds(self) -> float | None:
        """The time since the last command ended; None if none has ended."""
        with self._lock:
            return None if self._last_end is None else self._clock() - self._last_end

    def started(self) -> None:
        with self._lock:
            self._commands += 1

    def failed(self) -> None:
        with self._lock:
            self._errors += 1
        metrics.COMMAND_ERRORS.inc()

    def ended(self) -> None:
        with self._lock:
            self._last_end = self._clock()

    def add_input(self, size: int) -> None:
        with self._lock:
            self._input += size
        metrics.INPUT_BYTES.inc(size)

    def add_output(self, size: int) -> None:
        with self._lock:
            self._output += size
        metrics.OUTPUT_BYTES.inc(size)
