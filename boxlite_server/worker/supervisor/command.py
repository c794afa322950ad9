"""What the worker knows of a command under a supervisor."""

from __future__ import annotations

import os
import select
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from .wire import Failed, Started


class UnheardError(Exception):
    """The supervisor is not connected or takes nothing more; it knows nothing of the command."""


class UnansweredError(Exception):
    """The supervisor was lost before its answer."""


class News:
    """Is set once, and can be waited for as a descriptor that can be read from then on."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self, select.POLLIN)
        poll.poll()


class Command:
    """One command of a box, as far as this process follows it.

    `started`: the supervisor's answer, and the terminal's descriptor, which the receiver closes. `news` is set when the
    command has ended, and by whoever wants to wake those that wait for its end. `is_lost`: the exit code is not the
    command's own.
    """

    def __init__(self, command_id: int, *, has_terminal: bool) -> None:
        self.command_id = command_id
        self.has_terminal = has_terminal
        self.started: Future[tuple[Started | Failed, int | None]] = Future()
        self.news = News()
        self.exit_code: int | None = None
        self.is_lost = False
        self.is_killed = False
        self.signals: deque[Future[int]] = deque()  # whose answers are on their way, in order

    def end(self, exit_code: int, is_lost: bool) -> None:
        if self.exit_code is None:
            self.is_lost = is_lost
            self.exit_code = exit_code
            self.news.set()

    def fail(self) -> None:
        """End the waiting for answers to what was sent about the command."""
        lost = UnansweredError("the box's supervisor was lost before its answer")
        if not self.started.done():
            self.started.set_exception(lost)
        while self.signals:
            self.signals.popleft().set_exception(lost)

    def drop_terminal(self) -> None:
        """Close the terminal that nobody has received, if it has come. Called once the command was let go."""
        if self.started.done() and self.started.exception() is None and (terminal := self.started.result()[1]):
            os.close(terminal)


@dataclass(slots=True)
class Left:
    """What is known of a command that this process has let go. `is_started`: the supervisor has said so."""

    is_to_be_killed: bool
    is_started: bool
