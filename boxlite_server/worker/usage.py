"""What boxes use and do: measurements by the engine, and counts by the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BootTiming:
    """Where the time went on the way to a running box, in milliseconds; None: not measured.

    `box_spawn_ms` and `container_init_ms` are those of the last start.
    """

    image_prepare_ms: int | None = None  # find the image, or pull it
    box_config_ms: int | None = None  # make the box
    box_spawn_ms: int | None = None  # start it
    container_init_ms: int | None = None  # until its main command runs

    @property
    def total_ms(self) -> int | None:
        parts = (self.image_prepare_ms, self.box_config_ms, self.box_spawn_ms, self.container_init_ms)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a box uses now; a box at rest uses nothing. None: cannot be measured.

    `cpu_percent` is of one cpu, since the measurement before, or since the box's start when there was none.
    The network's bytes are since the box's start, seen from the box.
    """

    cpu_percent: float | None = 0.0
    memory_bytes: int | None = 0
    network_bytes_sent: int | None = None
    network_bytes_received: int | None = None
    boot: BootTiming = BootTiming()


@dataclass(frozen=True, slots=True)
class Counts:
    """What the commands of a box have done, main command included in the bytes."""

    commands: int = 0
    errors: int = 0  # commands that could not be started
    input_bytes: int = 0
    output_bytes: int = 0


class Tally:
    """Counts for one box, from many threads; `clock` gives seconds that only grow."""

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
        """Since the last command ended; None when none has."""
        with self._lock:
            return None if self._last_end is None else self._clock() - self._last_end

    def started(self) -> None:
        with self._lock:
            self._commands += 1

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def ended(self) -> None:
        with self._lock:
            self._last_end = self._clock()

    def took(self, size: int) -> None:
        """Input of so many bytes."""
        with self._lock:
            self._input += size

    def gave(self, size: int) -> None:
        """Output of so many bytes."""
        with self._lock:
            self._output += size
