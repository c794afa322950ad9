from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from support.sites import in_thread

from boxlite_server.errors import InvalidArgumentError
from boxlite_server.worker.commands import STDERR, STDOUT
from boxlite_server.worker.executions import output_log
from boxlite_server.worker.executions.output_log import MAX_CHUNK, Chunk, Dropped, OutputLog, Reader, remove_logs


def read_all(reader: Reader) -> list[Chunk | Dropped]:
    events: list[Chunk | Dropped] = []
    while found := reader.read(10):
        events.extend(found)
    return events


def append_all(log: OutputLog, data: list[bytes]) -> None:
    for piece in data:
        log.append(STDOUT, piece)


def pieces(events: list[Chunk | Dropped]) -> list[tuple[int, bytes]]:
    return [(event.stream, event.data) for event in events if isinstance(event, Chunk)]


def test_neighbours_of_one_stream_are_joined_and_the_order_is_kept(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    for stream, data in [(STDOUT, b"a"), (STDOUT, b"b"), (STDERR, b"c"), (STDOUT, b"d")]:
        log.append(stream, data)
    log.close()
    with log.reader() as reader:
        assert pieces(read_all(reader)) == [(STDOUT, b"ab"), (STDERR, b"c"), (STDOUT, b"d")]


def test_output_after_a_pause_is_read_at_once_and_what_follows_it_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_log, "BATCH_SECONDS", 600.0)
    log = OutputLog(tmp_path)
    with log.reader() as reader:
        log.append(STDOUT, b"first")
        assert pieces(reader.read()) == [(STDOUT, b"first")]
        small = 5000
        writing = in_thread(lambda: append_all(log, [bytes(small)] * 60))  # more than one piece has
        [(_, data)] = pieces(reader.read())
        assert MAX_CHUNK - 2 * small < len(data) <= MAX_CHUNK
        writing.join()
        in_thread(log.close)  # what is left is the end
        assert len(data) + sum(len(rest) for _, rest in pieces(reader.read())) == 60 * small


def test_a_reader_that_waits_for_more_output_leaves_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_log, "BATCH_SECONDS", 600.0)
    log = OutputLog(tmp_path)
    with log.reader() as reader:
        log.append(STDOUT, b"first")
        assert reader.read()
        log.append(STDOUT, b"second")
        in_thread(reader.close)
        assert reader.read() == []


def test_an_empty_log_ends(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    log.append(STDOUT, b"")
    log.close()
    with log.reader() as reader:
        assert reader.read() == []


def test_reading_goes_on_from_every_position(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    for number in range(20):
        log.append(STDOUT if number % 3 else STDERR, b"%d " % number)
    log.close()
    with log.reader() as reader:
        events = read_all(reader)
    for index, event in enumerate(events):
        with log.reader(event.position) as reader:
            assert read_all(reader) == events[index + 1 :]


def test_large_output_comes_in_bounded_chunks(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    data = random.Random(1).randbytes(3 * MAX_CHUNK + 17)
    log.append(STDOUT, data)
    log.close()
    with log.reader() as reader:
        events = read_all(reader)
    assert all(len(chunk) <= MAX_CHUNK for _, chunk in pieces(events))
    assert b"".join(chunk for _, chunk in pieces(events)) == data


def test_a_reader_waits_for_output(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    found: list[Chunk | Dropped] = []
    with log.reader() as reader:
        thread = in_thread(lambda: found.extend(read_all(reader)))
        log.append(STDOUT, b"now")
        log.close()
        thread.join(60)
    assert pieces(found) == [(STDOUT, b"now")]


def test_read_gives_up_after_its_timeout(tmp_path: Path) -> None:
    with OutputLog(tmp_path).reader() as reader:
        assert reader.read(timeout=0.01) == []


def test_close_wakes_a_waiting_reader(tmp_path: Path) -> None:
    reader = OutputLog(tmp_path).reader()
    thread = in_thread(reader.read)
    reader.close()
    thread.join(60)
    assert not thread.is_alive()
    assert reader.left


def test_without_readers_the_oldest_gives_way_and_a_late_reader_is_told(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, capacity=100)
    for number in range(50):
        log.append(STDOUT, b"%05d" % number)  # 10 bytes each in the log
    log.close()
    with log.reader() as reader:
        dropped, *rest = read_all(reader)
    kept = b"".join(data for _, data in pieces(rest))
    assert kept == b"".join(b"%05d" % number for number in range(40, 50))
    assert isinstance(dropped, Dropped)
    assert dropped.byte_count + len(kept) == 250
    with log.reader(dropped.position) as reader:
        assert read_all(reader) == rest


def test_an_attached_reader_makes_the_writer_wait_and_loses_nothing(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, capacity=100)
    with log.reader() as reader:
        writer = in_thread(lambda: append_all(log, [b"%05d" % number for number in range(500)]))
        data = b""
        while len(data) < 2500:
            events = reader.read(10)
            assert not any(isinstance(event, Dropped) for event in events), "the writer did not wait"
            data += b"".join(part for _, part in pieces(events))
    writer.join(60)
    assert data == b"".join(b"%05d" % number for number in range(500))


def test_a_reader_that_leaves_frees_the_writer(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, capacity=100)
    reader = log.reader()
    writer = in_thread(lambda: append_all(log, [b"x" * 20] * 50))
    reader.close()
    writer.join(60)
    assert not writer.is_alive()


def test_release_frees_the_writer_and_the_slow_reader_is_told(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, capacity=100)
    with log.reader() as reader:
        writer = in_thread(lambda: append_all(log, [b"x" * 20] * 50))
        log.release()
        writer.join(60)
        assert not writer.is_alive()
        log.close()
        dropped, *rest = read_all(reader)
    assert isinstance(dropped, Dropped)
    assert dropped.byte_count + sum(len(data) for _, data in pieces(rest)) == 1000


def test_close_frees_a_waiting_writer(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, capacity=100)
    with log.reader():
        writer = in_thread(lambda: log.append(STDOUT, b"x" * 1000))
        log.close()
        writer.join(60)
        assert not writer.is_alive()


def test_positions_that_were_never_handed_out_are_refused(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    log.append(STDOUT, b"\xff" * 100)
    with pytest.raises(InvalidArgumentError):
        log.reader(1000)
    with log.reader(7) as reader, pytest.raises(InvalidArgumentError):
        reader.read()


def test_random_traffic_of_many_readers_arrives_whole(tmp_path: Path) -> None:
    rng = random.Random(7)
    written = [(rng.choice((STDOUT, STDERR)), rng.randbytes(rng.randrange(1, 900))) for _ in range(400)]
    log = OutputLog(tmp_path, capacity=4096)
    found: list[list[tuple[int, bytes]]] = [[] for _ in range(4)]
    ready = threading.Barrier(len(found) + 1)

    def read(into: list[tuple[int, bytes]]) -> None:
        with log.reader() as reader:
            ready.wait(60)
            into.extend(pieces(read_all(reader)))

    threads = [in_thread(lambda into=into: read(into)) for into in found]  # type: ignore[misc]
    ready.wait(60)
    for stream, data in written:
        log.append(stream, data)
    log.close()
    for thread in threads:
        thread.join(60)
    for into in found:
        for stream in (STDOUT, STDERR):
            expected = b"".join(data for of, data in written if of == stream)
            assert b"".join(data for of, data in into if of == stream) == expected


def descriptors_of(directory: Path) -> list[str]:
    """The files of a directory that this process has open."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(directory))]


def test_a_closed_log_holds_no_descriptor_and_can_be_read(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    log.append(STDOUT, b"x")
    assert len(descriptors_of(tmp_path)) == 1
    log.close()
    assert descriptors_of(tmp_path) == []
    for _ in range(2):
        with log.reader() as reader:
            assert pieces(read_all(reader)) == [(STDOUT, b"x")]
    assert descriptors_of(tmp_path) == []


def test_a_discarded_log_leaves_no_file_and_its_reader_reads_on(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    append_all(log, [b"x" * MAX_CHUNK, b"end"])
    with log.reader() as reader:
        reader.read()
        log.discard()
        assert list(tmp_path.iterdir()) == []
        assert pieces(read_all(reader)) == [(STDOUT, b"end")]


def test_logs_that_a_former_process_left_are_removed(tmp_path: Path) -> None:
    OutputLog(tmp_path).append(STDOUT, b"x")
    (tmp_path / "other").touch()
    remove_logs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_log_may_begin_late(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, begin=1 << 40)
    assert [log.holds(position) for position in (0, 1, 1 << 40, (1 << 40) + 1)] == [True, False, True, False]
    log.append(1, b"one")
    log.close()
    with log.reader() as reader:
        (chunk,) = reader.read()
        assert isinstance(chunk, Chunk)
        assert (chunk.data, chunk.position > 1 << 40) == (b"one", True)
    with log.reader(chunk.position) as reader:
        assert reader.read() == []
