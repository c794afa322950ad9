"""What every runtime promises of a box's log."""

from __future__ import annotations

from datetime import datetime

import pytest
from support.sites import Site, in_thread

from boxlite_server.errors import NotFoundError
from boxlite_server.worker.commands import LogReader
from boxlite_server.worker.runtime import BoxRef

SCRIPT = "echo one; echo two >&2; echo three; cat >/dev/null; exit 3"


def whole(log: LogReader) -> tuple[bytes, bytes]:
    output = {1: b"", 2: b""}
    while (piece := log.read()) is not None:
        output[piece[0]] += piece[1]
    log.close()
    log.close()
    return output[1], output[2]


def run(site: Site, box: BoxRef) -> None:
    """One run of the main command, to its end."""
    main = site.runtime.attach_main(box)
    site.runtime.start(box)
    main.close_input(60)
    while main.read() is not None:
        pass
    assert main.wait() == 3


def test_all_runs_and_both_streams(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", SCRIPT))
    assert whole(site.runtime.read_logs(box, None, False)) == (b"", b"")
    for runs in (1, 2):
        run(site, box)
        site.runtime.stop(box, 1)
        for follow in (False, True):
            found = whole(site.runtime.read_logs(box, None, follow))
            assert found == (b"one\nthree\n" * runs, b"two\n" * runs)
    site.runtime.remove(box, force=True)


@pytest.mark.parametrize(
    ("tail", "out", "err"),
    [(0, b"", b""), (1, b"three\n", b""), (2, b"three\n", b"two\n"), (9, b"one\nthree\n", b"two\n")],
)
def test_the_last_lines(site: Site, tail: int, out: bytes, err: bytes) -> None:
    # In this order on the log, which two streams by themselves would not promise.
    box = site.new_box(cmd=("sh", "-c", "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three; cat; exit 3"))
    run(site, box)
    site.runtime.stop(box, 1)
    assert whole(site.runtime.read_logs(box, tail, False)) == (out, err)
    site.runtime.remove(box, force=True)


def test_the_time_of_each_line_and_what_was_said_since(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "echo one; sleep 1.1; echo two >&2; cat >/dev/null; exit 3"))
    run(site, box)
    site.runtime.stop(box, 1)
    times = {}
    for text in whole(site.runtime.read_logs(box, None, False, timestamps=True)):
        time, _, word = text.decode().partition(" ")
        times[word] = datetime.fromisoformat(time).timestamp()
    assert times.keys() == {"one\n", "two\n"}
    assert times["two\n"] - times["one\n"] > 1
    middle = (times["one\n"] + times["two\n"]) / 2
    assert whole(site.runtime.read_logs(box, None, False, since=middle)) == (b"", b"two\n")
    assert whole(site.runtime.read_logs(box, 9, True, since=0)) == (b"one\n", b"two\n")
    site.runtime.remove(box, force=True)


def test_a_follower_hears_the_end(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "echo begun; read x; echo $x; exit 3"))
    main = site.runtime.attach_main(box)
    site.runtime.start(box)
    assert main.read() == (1, b"begun\n")
    log = site.runtime.read_logs(box, None, True)
    assert log.read() == (1, b"begun\n")
    assert main.write(b"over\n", 60) == 5
    assert whole(log) == (b"over\n", b"")
    site.runtime.remove(box, force=True)


def test_a_terminals_log(site: Site) -> None:
    box = site.new_box(cmd=("sh", "-c", "echo out; echo err >&2; exit 3"), tty=True)
    main = site.runtime.attach_main(box)
    site.runtime.start(box)
    while main.read() is not None:
        pass
    site.runtime.stop(box, 1)
    assert whole(site.runtime.read_logs(box, None, False)) == (b"out\r\nerr\r\n", b"")
    site.runtime.remove(box, force=True)


def test_close_ends_a_blocked_reader(site: Site, box: BoxRef) -> None:
    log = site.runtime.read_logs(box, 0, True)
    reader = in_thread(log.read)
    log.close()
    reader.join(60)
    assert not reader.is_alive()


def test_unknown_box(site: Site) -> None:
    with pytest.raises(NotFoundError):
        site.runtime.read_logs(BoxRef("nosuchbox123", 1), None, False)
