from __future__ import annotations

import io

import pytest
from support.clock import Clock

from boxlite_server.client.progress import Bar, size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_share_and_rate() -> None:
    clock = Clock(0.0)
    bar = Bar("data", 4 << 20, stream=Terminal(), clock=clock)
    clock.now = 2.0
    bar.advance(1 << 20)
    assert bar.line() == "data  [======>                 ]  25%  1.0 MiB / 4.0 MiB  512.0 KiB/s"
    bar.advance(3 << 20)
    assert "[========================] 100%" in bar.line()


def test_without_a_total_there_is_no_share() -> None:
    clock = Clock(0.0)
    bar = Bar("data", stream=Terminal(), clock=clock)
    clock.now = 1.0
    bar.advance(100)
    assert bar.line() == "data  100 B  100 B/s"


def test_it_is_drawn_ten_times_a_second_at_most_and_stays() -> None:
    terminal, clock = Terminal(), Clock(0.0)
    with Bar("data", 100, stream=terminal, clock=clock) as bar:
        assert list(bar.over([b"x"] * 100)) == [b"x"] * 100
    assert terminal.getvalue().count("\r") == 2  # the first byte, and the end
    assert terminal.getvalue().endswith("\n")
    assert "100%" in terminal.getvalue()


def test_a_failed_transfer_leaves_no_line() -> None:
    terminal = Terminal()
    with pytest.raises(ValueError, match="broken"), Bar("data", stream=terminal) as bar:
        bar.advance(1)
        raise ValueError("broken")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_written_where_nobody_looks() -> None:
    stream = io.StringIO()
    with Bar("data", 3, stream=stream) as bar:
        bar.advance(3)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
