"""What execs and main commands of Docker containers share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...errors import EngineError, NotFoundError
from ..commands import GONE_EXIT_CODE

# The engine lets the client of a terminal detach by typing keys. The worker never detaches, so it sets keys that
# nobody types.
DETACH_KEYS = "ctrl-\\,ctrl-^,ctrl-\\,ctrl-^,ctrl-\\,ctrl-^"
FIRST_POLL, LAST_POLL = 0.01, 0.5  # seconds


class Waiter:
    """Waits for a command's exit code, by polling with growing intervals until it is closed."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self.lost = ""  # see `Process.lost`

    def until(self, exit_code: Callable[[], int | None]) -> int:
        """The first exit code that `exit_code` returns; `GONE_EXIT_CODE` once the waiter is closed, or when the
        engine has forgotten the command."""
        interval = FIRST_POLL
        while True:
            try:
                code = exit_code()
            except NotFoundError:
                self.lost = "the exit code is lost: the box was removed, or the container engine restarted"
                return GONE_EXIT_CODE
            except EngineError:
                code = None  # the engine may come back
            if code is not None:
                return code
            if self.pause(interval):
                self.lost = "the exit code is lost: the container engine did not tell it in time"
                return GONE_EXIT_CODE
            interval = min(interval * 2, LAST_POLL)

    def pause(self, seconds: float) -> bool:
        """Sleep, but not on after `close`. Returns whether the waiter is closed."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        self._closed.set()
