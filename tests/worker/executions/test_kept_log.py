"""A log that outlives the process that writes it, and the space that it takes."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from boxlite_server.worker.commands import STDERR, STDOUT
from boxlite_server.worker.executions import output_log
from boxlite_server.worker.executions.output_log import Chunk, Dropped, OutputLog, remove_logs

WRITER = """
import array, fcntl, sys, termios
from pathlib import Path
from boxlite_server.worker.executions.output_log import OutputLog

log = OutputLog.recovered(Path(sys.argv[1]), "x", 1 << 16) or OutputLog(Path(sys.argv[1]), 1 << 16, name="x")
print(flush=True)
while True:
    count = array.array("i", [0])
    fcntl.ioctl(0, termios.FIONREAD, count)
    if count[0]:
        log.take(1 + count[0] % 2, 0, count[0])
"""


def content(log: OutputLog, position: int = 0) -> tuple[bytes, int, int]:
    """What the log holds behind a position, how many bytes of output came before that, and the end."""
    data, dropped, end = b"", 0, position
    with log.reader(position) as reader:
        while events := reader.read(0):
            for event in events:
                end = event.position
                if isinstance(event, Chunk):
                    data += event.data
                else:
                    assert isinstance(event, Dropped)
                    dropped = event.byte_count
    return data, dropped, end


def test_a_writer_that_is_killed_at_any_moment_has_lost_and_doubled_no_byte(tmp_path: Path) -> None:
    rng, numbers = random.Random(3), count()
    reading, writing = os.pipe()
    stopping = threading.Event()
    written = bytearray()

    def say() -> None:
        while not stopping.is_set():
            piece = b"".join(b"%d," % next(numbers) for _ in range(rng.randrange(1, 50)))
            os.write(writing, piece)
            written.extend(piece)

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        for _ in range(12):
            child = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdin=reading, stdout=subprocess.PIPE)
            assert child.stdout and child.stdout.read(1)
            time.sleep(rng.random() / 20)  # the moment has to be any
            child.kill()
            child.wait()
            child.stdout.close()
    finally:
        stopping.set()
        rest = b""
        while speaker.is_alive() or select_one(reading):
            rest += os.read(reading, 1 << 20) if select_one(reading) else b""
    log = OutputLog.recovered(tmp_path, "x", 1 << 16)
    assert log is not None
    held, dropped, _ = content(log)
    assert len(held) > 1 << 13
    assert dropped + len(held) + len(rest) == len(written)
    assert bytes(written).endswith(held + rest)
    os.close(reading)
    os.close(writing)


def select_one(pipe: int) -> bool:
    return bool(select.select([pipe], [], [], 0.01)[0])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def say(log: OutputLog, pipe: tuple[int, int], data: bytes, stream: int = STDOUT) -> None:
    os.write(pipe[1], data)
    assert log.take(stream, pipe[0], len(data)) == len(data)


def test_positions_stay_valid_and_the_log_goes_on(tmp_path: Path, pipe: tuple[int, int]) -> None:
    log = OutputLog(tmp_path, name="x")
    say(log, pipe, b"one")
    _, _, position = content(log)
    say(log, pipe, b"two", STDERR)
    for _ in range(2):
        again = OutputLog.recovered(tmp_path, "x")
        assert again is not None
        assert content(again, position)[0] == b"two"
    say(again, pipe, b"three")
    assert content(again)[0] == b"onetwothree"
    assert not again.is_empty


def test_output_that_passed_through_the_process_is_whole_only_when_the_log_was_closed(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, name="x")
    log.append(STDOUT, b"one")
    assert OutputLog.recovered(tmp_path, "x") is None
    ended = OutputLog.recovered(tmp_path, "x", has_ended=True)
    assert ended is not None and content(ended)[0] == b"one"


@pytest.mark.parametrize("damage", [b"", b"x" * 10, b"x" * 10_000])
def test_a_damaged_log_is_not_taken(tmp_path: Path, pipe: tuple[int, int], damage: bytes) -> None:
    log = OutputLog(tmp_path, name="x")
    say(log, pipe, b"one")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert OutputLog.recovered(tmp_path, "x") is None
    assert OutputLog.recovered(tmp_path, "y") is None


def test_the_file_takes_no_more_of_the_disk_than_the_log_holds(tmp_path: Path, pipe: tuple[int, int]) -> None:
    capacity = 1 << 20
    log = OutputLog(tmp_path, capacity, name="x")
    for number in range(200):
        say(log, pipe, bytes([number]) * 50_000)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_blocks * 512 < capacity * 1.2
    assert path.stat().st_size > 9 * capacity
    assert path.stat().st_mode & 0o077 == 0
    data, dropped, _ = content(log)
    assert dropped + len(data) == 200 * 50_000
    assert data.endswith(b"".join(bytes([number]) * 50_000 for number in range(185, 200)))


def test_a_log_of_endless_output_goes_on_in_a_new_file(
    tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_log, "_MAX_FILE", 20_000)
    log = OutputLog(tmp_path, 4000, name="x")
    with log.reader() as reader:
        for number in range(200):
            say(log, pipe, b"%01000d" % number)
            assert [event.data for event in reader.read(60) if isinstance(event, Chunk)] == [b"%01000d" % number]
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 30_000
    again = OutputLog.recovered(tmp_path, "x", 4000)
    assert again is not None
    assert content(again) == content(log)
    assert content(again)[0].endswith(b"%01000d" % 199)


def test_a_disk_that_takes_nothing_from_pipes_is_written_to_all_the_same(
    tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **how: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    log = OutputLog(tmp_path, name="x")
    say(log, pipe, b"one")
    say(log, pipe, b"two", STDERR)
    assert content(log)[0] == b"onetwo"
    assert OutputLog.recovered(tmp_path, "x") is None  # a killed process may have had some of it in its memory


def test_logs_of_known_executions_are_kept_at_the_start(tmp_path: Path, pipe: tuple[int, int]) -> None:
    for name in ("known", "other/one"):
        say(OutputLog(tmp_path, name=name), pipe, b"x")
    remove_logs(tmp_path, {"known"})
    assert [path.name for path in tmp_path.iterdir()] == ["output-known"]
