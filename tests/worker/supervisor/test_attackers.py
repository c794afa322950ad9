"""Processes of a box that attack the supervisor: they harm their own box at most, and the worker is told."""

from __future__ import annotations

import os

import pytest
from support.cluster import wait_until
from support.supervised_box import CONFINED, FOLDER, NewBox, Supervised
from support.supervisor_peer import BY_SIGNAL, LOST, SPEC, Packet, memory_file, spec_bytes


def attack(box: Supervised, script: str) -> tuple[int, bytes, bytes]:
    return box.peer.run("sh", "-c", script)


def test_process_1_can_be_neither_killed_nor_stopped(box: Supervised) -> None:
    attack(box, "kill -KILL 1; kill -STOP 1")
    assert box.peer.run("true")[0] == 0


def test_a_keeper_that_is_killed_takes_its_command_along(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "echo $PPID; sleep 65432 & sleep 65432")
    keeper = command.read_line()
    attack(box, f"kill -KILL {keeper}")
    assert command.end() == Packet("X", command.id, 137, 0, BY_SIGNAL | LOST)
    wait_until(lambda: box.count("sleep 65432") == 0, "the command's tree to be killed")


def test_a_keeper_that_its_own_command_kills(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "kill -KILL $PPID; sleep 65432")
    ended = command.end()
    assert ended.flags == BY_SIGNAL | LOST
    wait_until(lambda: box.count("sleep 65432") == 0, "the command to be killed")


def test_a_command_whose_keeper_is_killed_at_once_is_killed(box: Supervised) -> None:
    """Before the keeper could tell that it has started the command."""
    for _ in range(20):
        assert box.peer.spawn("sh", "-c", "kill -KILL $PPID; exec sleep 65431").end().a == 137
    wait_until(lambda: box.count("sleep 65431") == 0, "the commands to be killed")


def test_a_keeper_that_is_stopped_goes_on(box: Supervised) -> None:
    command = box.peer.spawn("sh", "-c", "while :; do kill -STOP $PPID; done")
    command.started()
    assert command.kill() == 0
    assert command.end().a == 137
    other = box.peer.spawn("sh", "-c", "kill -STOP $PPID; exit 4")
    assert other.end().a == 4


def test_nobody_reads_the_memory_or_descriptors_of_supervisor_and_keepers(box: Supervised) -> None:
    """The kernel allows ptrace by the same rule (ptrace_may_access) as these files."""
    script = "for pid in 1 $PPID; do for name in mem environ fd/0; do cat /proc/$pid/$name; done; done"
    code, output, errors = attack(box, f"{script}; (cat /proc/$$/environ > /dev/null) && echo own")
    assert (code, output) == (0, b"own\n")
    assert errors.count(b"ermission denied") == 6, errors


def test_the_socket_and_the_program_cannot_be_changed(box: Supervised) -> None:
    code, _, errors = attack(box, f"rm -f {FOLDER}/socket; echo > {FOLDER}/init; touch {FOLDER}/x; exit 1")
    assert code == 1
    assert errors.lower().count(b"read-only") == 3, errors


def test_a_stranger_on_the_socket_is_not_taken_for_the_supervisor(box: Supervised) -> None:
    """Anybody in the box can run the program too; the worker knows the supervisor by its pid."""
    stranger = box.peer.spawn(f"{FOLDER}/init")
    stranger.started()
    connection, _ = box.peer.listener.accept()
    box.peer.listener.settimeout(60)
    assert connection is not box.peer.connection
    connection.close()
    assert stranger.kill() == 0
    stranger.end()


def test_a_flood_of_orphans_and_signals_delays_at_most(new_supervised: NewBox) -> None:
    box = new_supervised(**CONFINED)
    flood = box.peer.spawn("sh", "-c", "while :; do (true &); kill -USR1 $PPID; kill -WINCH 1; done")
    flood.started()
    for _ in range(20):
        assert box.peer.run("true")[0] == 0
    assert flood.kill() == 0
    flood.end()


MALFORMED = [
    b"",
    b"S",
    b"S" * 15,
    b"S" * 17,
    b"S" * 60_000,
    b"\0" * 16,
    b"G\0\1\0" + b"\1" * 12,  # the reserved field
    b"G\0\0\0" + b"\0" * 12,  # no id
    b"Z\0\0\0" + b"\1" * 12,
    b"A\0\0\0" + b"\1" * 12,
    b"S\0\0\0" + b"\1" * 12,  # without descriptors
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_packet_that_is_none_ends_the_connection_alone(box: Supervised, data: bytes) -> None:
    lasting = box.peer.spawn("sleep", "1000")
    lasting.started()
    assert box.peer.connection is not None
    box.peer.connection.send(data)
    with pytest.raises(ConnectionResetError):
        box.peer.receive()
    box.peer.connection.close()
    assert box.peer.accept(box.pid).b == 1
    assert lasting.started().type == "A"
    assert lasting.kill() == 0
    lasting.end()


def test_descriptors_that_nobody_asked_for_are_closed(box: Supervised) -> None:
    reader, writer = os.pipe()
    for packet in (Packet("G", 1, 1, descriptors=(writer,)), Packet("S", 1, descriptors=(writer,) * 3)):
        box.peer.send(packet)
        with pytest.raises(ConnectionResetError):
            box.peer.receive()
        box.peer.accept(box.pid)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


GOOD = spec_bytes(["true"], {"A": "b"})
SPECS = [
    b"",
    GOOD[:7],
    GOOD[:-1],
    GOOD + b"\0",
    GOOD + b"x",
    GOOD[8:],
    b"\0\0\0\0" + GOOD[4:],
    b"\2\0\0\0" + GOOD[4:],
    b"\xff\xff\xff\xff" + GOOD[4:],
    GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
    GOOD[:4] + b"\2\0\0\0" + GOOD[8:],
    GOOD.replace(b"=", b"-"),
    b"\0" * 100,
    b"\1" * (4 << 20) + b"\0",
]


@pytest.mark.parametrize("data", SPECS)
def test_a_spec_that_is_none_is_refused(box: Supervised, data: bytes) -> None:
    file = memory_file(data)
    null = os.open(os.devnull, os.O_RDWR)
    box.peer.send(Packet("S", 4711, descriptors=(file, null, null, null)))
    assert box.peer.next("E", 4711).b == SPEC
    for descriptors in ((null,) * 4, (0, null, null, null)):
        box.peer.send(Packet("S", 4712, descriptors=descriptors))
        assert box.peer.next("E", 4712).b == SPEC
    os.close(file)
    os.close(null)
