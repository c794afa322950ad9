"""The worker's end of a terminal that a box shares, and that the box makes block."""

from __future__ import annotations

import os
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from support.cluster import wait_until
from support.sites import in_thread

from boxlite_server.worker.supervisor.command import News
from boxlite_server.worker.supervisor.ends import Terminal
from boxlite_server.worker.supervisor.input import Input

SOON = 60.0  # seconds


@pytest.fixture
def terminal() -> Iterator[tuple[Terminal, int]]:
    """A terminal, and the box's end of it."""
    master, other = os.openpty()
    tty.setraw(other)
    yield Terminal(master), other
    os.close(other)


@contextmanager
def blocking(terminal: Terminal) -> Iterator[None]:
    """Reads and writes of the terminal block: the box clears O_NONBLOCK whenever the worker has set it."""
    os.set_blocking(terminal.fileno(), True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "set_blocking", lambda *_: None)
        yield


def reading(other: int) -> bytearray:
    """What comes to the box's end from now on."""
    read = bytearray()

    def go_on() -> None:
        with suppress(OSError):  # the terminal is gone
            while True:
                read.extend(os.read(other, 1 << 16))

    in_thread(go_on)
    return read


def test_a_write_comes_back_in_time_and_the_next_one_goes_on_there(terminal: tuple[Terminal, int]) -> None:
    mine, other = terminal
    feeding = Input(mine, lambda *_: None)
    data = bytes(range(256)) * 400
    began = time.monotonic()
    with blocking(mine):
        taken = feeding.write(data, 0.2, News())
    os.set_blocking(mine.fileno(), False)
    assert time.monotonic() - began < SOON
    assert 0 < taken == feeding.taken < len(data)

    read = reading(other)
    while taken < len(data):
        taken += feeding.write(data[taken:], SOON, News())
        assert taken == feeding.taken
    wait_until(lambda: len(read) == len(data), "all to be read")
    assert read == data


def test_a_write_that_cannot_be_interrupted_is_left_behind(
    terminal: tuple[Terminal, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel that does not interrupt it. What the command is handed meanwhile counts."""
    monkeypatch.setattr(Terminal, "_interrupt", lambda self, is_done: None)
    mine, other = terminal
    feeding = Input(mine, lambda *_: None)
    with blocking(mine):
        told = feeding.write(b"x" * 100_000, 0.2, News())
        began = time.monotonic()
        assert feeding.write(b"y", 0.2, News()) == 0
        assert time.monotonic() - began < SOON
    read = reading(other)
    wait_until(lambda: mine.within(0, lambda: 1) == 1, "the first write to be over")
    wait_until(lambda: len(read) == feeding.taken, "all that was handed over to be read")
    assert told <= feeding.taken


def test_a_read_comes_back_when_the_terminal_is_released(terminal: tuple[Terminal, int]) -> None:
    mine, _ = terminal
    found: list[int | None] = []
    with blocking(mine):
        reader = in_thread(lambda: found.append(mine.ready()))
        reader.join(0.1)  # it reads by now, or finds the terminal released
        mine.release()
        reader.join(SOON)
    assert found == [None]
