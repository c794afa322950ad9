"""What all commands in Docker containers share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...errors import EngineError, InvalidArgumentError, NotFoundError
from ..commands import GONE_EXIT_CODE

END_OF_TRANSMISSION = b"\x04"  # what a terminal takes for the end of input
# The engine lets a client of a terminal detach by typing keys; ours never does, so the keys are improbable.
DETACH_KEYS = "ctrl-\\,ctrl-^,ctrl-\\,ctrl-^,ctrl-\\,ctrl-^"
FIRST_POLL, LAST_POLL = 0.01, 0.5  # seconds


class Waiter:
    """Polls with growing intervals until let go."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self.lost = ""  # see `Process.lost`

    def close(self) -> None:
        self._closed.set()

    def until(self, exit_code: Callable[[], int | None]) -> int:
        """The first exit code given; `GONE_EXIT_CODE` once closed or when the engine has forgotten it."""
        interval = FIRST_POLL
        while True:
            try:
                code = exit_code()
            except NotFoundError:
                self.lost = "the exit code is lost: the box was removed, or the container engine restarted"
                return GONE_EXIT_CODE
            except EngineError:
                code = None  # it may come back
            if code is not None:
                return code
            if self._closed.wait(interval):
                self.lost = "the exit code is lost: the container engine did not tell it in time"
                return GONE_EXIT_CODE
            interval = min(interval * 2, LAST_POLL)


def check_signal(number: int) -> None:
    if not 1 <= number <= 64:
        raise InvalidArgumentError(f"{number} is not a signal number")
