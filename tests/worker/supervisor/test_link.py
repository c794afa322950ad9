"""Who is heard on the socket that is mounted into a box, and what comes of what is said there."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxlite_server.worker.supervisor import wire
from boxlite_server.worker.supervisor.command import Command, UnansweredError, UnheardError
from boxlite_server.worker.supervisor.link import Link
from boxlite_server.worker.supervisor.links import Links

SOON = 60.0  # seconds


def packet(kind: str, command_id: int = 0, a: int = 0, b: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<BBHIII", ord(kind), flags, 0, command_id, a, b)


class Peer:
    """Speaks for a supervisor. The process of the test is the one that the link expects."""

    def __init__(self, links: Links, link: Link) -> None:
        self.place = links.prepare("box") / "socket"
        self.link = link
        self.connection: socket.socket | None = None

    def dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(SOON)
        connection.connect(str(self.place))
        return connection

    def greet(self, *known: bytes) -> None:
        """Dial until the link listens to it."""
        self.connection = self.dial()
        for said in (packet("H", a=1, b=len(known)), *known):
            self.connection.send(said)
        assert self.link.wait_live(SOON)

    def say(self, said: bytes, *descriptors: int) -> None:
        assert self.connection is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.connection.sendmsg([said], rights)

    def hear(self) -> tuple[str, int, int]:
        """Type, id and number of the next packet; an empty type at the end."""
        assert self.connection is not None
        said, rights, _, _ = self.connection.recvmsg(100, socket.CMSG_SPACE(16))
        for _, _, data in rights:
            for number in array.array("i", data):
                os.close(number)
        if not said:
            return "", 0, 0
        kind, _, _, command_id, a, _ = struct.unpack("<BBHIII", said)
        return chr(kind), command_id, a

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    program = tmp_path / "program"
    program.write_bytes(b"#!/bin/true\n")
    links = Links(tmp_path / "boxes", program)
    yield links
    links.close()


@pytest.fixture
def link(links: Links) -> Link:
    links.prepare("box")
    return links.link("box")


@pytest.fixture
def peer(links: Links, link: Link) -> Peer:
    link.expect(os.getpid())
    return Peer(links, link)


def started(peer: Peer, *, terminal: bool = False) -> Command:
    """A command that the peer has been asked to start."""
    null = os.open(os.devnull, os.O_RDWR)
    command = peer.link.start(null, (80, 24) if terminal else None, [] if terminal else [null, null, null])
    os.close(null)
    assert peer.hear()[:2] == ("S", command.command_id)
    return command


def running(peer: Peer) -> Command:
    command = started(peer)
    peer.say(packet("A", command.command_id, 7))
    assert command.started.result(SOON) == (wire.Started(command.command_id, 7), None)
    return command


def is_dropped(peer: Peer) -> bool:
    try:
        return peer.hear()[0] == ""
    except ConnectionError:
        return True


def test_a_command_is_started_signalled_and_ends(peer: Peer) -> None:
    peer.greet()
    command = running(peer)
    answer = peer.link.signal(command, 15)
    assert peer.hear() == ("G", command.command_id, 15)
    peer.say(packet("Q", command.command_id, 0))
    assert answer.result(SOON) == 0
    answer = peer.link.kill(command)
    assert peer.hear() == ("K", command.command_id, 0)
    assert peer.link.running() == 1
    peer.say(packet("Q", command.command_id, 0))
    assert answer.result(SOON) == 0
    peer.say(packet("X", command.command_id, 137, flags=1))
    command.news.wait()
    assert (command.exit_code, command.is_lost, peer.link.running()) == (137, False, 0)
    peer.link.forget(command)
    assert peer.hear() == ("F", command.command_id, 0)


def test_a_command_that_cannot_be_started_says_why(peer: Peer) -> None:
    peer.greet()
    command = started(peer)
    peer.say(packet("E", command.command_id, 2, 5))
    assert command.started.result(SOON)[0] == wire.Failed(command.command_id, 2, wire.Stage.EXECUTE)


def test_nobody_but_the_expected_process_is_heard(links: Links, link: Link) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    try:
        link.expect(other.pid)
        peer = Peer(links, link)
        peer.connection = peer.dial()
        assert is_dropped(peer)
        assert not link.is_live
        with pytest.raises(UnheardError):
            link.start(0, None, [0, 0, 0])
    finally:
        other.kill()
        other.wait()


def test_a_process_with_the_pid_of_a_dead_supervisor_is_not_heard(links: Links, link: Link) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    link.expect(dead.pid)
    peer = Peer(links, link)
    peer.connection = peer.dial()
    assert not link.wait_live(0.3)


def test_a_supervisor_that_dials_before_its_pid_is_known_is_heard_then(links: Links, link: Link) -> None:
    peer = Peer(links, link)
    peer.connection = peer.dial()
    peer.say(packet("H", a=1))
    assert not link.wait_live(0.2)
    link.expect(os.getpid())
    assert link.wait_live(SOON)


def test_those_who_dial_again_and_again_are_accepted_seldom(links: Links, link: Link) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    try:
        link.expect(other.pid)
        peer, until = Peer(links, link), time.monotonic() + 1
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
                connection.connect_ex(str(peer.place))
        assert link.dropped < 100
    finally:
        other.kill()
        other.wait()


GARBAGE = [
    b"x",
    bytes(16),
    bytes(17),
    bytes(70000),
    packet("H", a=1),
    packet("A", 1, 7),
    packet("X", 1, 0),
    packet("Q", 1, 0),
    packet("E", 1, 2, 5),
    packet("S", 1),
]


@pytest.mark.parametrize("said", GARBAGE)
def test_what_nobody_asked_for_drops_the_connection_and_no_command(peer: Peer, said: bytes) -> None:
    peer.greet()
    command = running(peer)
    peer.say(said)
    assert is_dropped(peer)
    assert (peer.link.dropped, command.exit_code) == (1, None)
    peer.greet(packet("A", command.command_id, 7))
    peer.say(packet("X", command.command_id, 4))
    command.news.wait()
    assert command.exit_code == 4


@pytest.mark.parametrize("said", [packet("A", 1, 7), packet("H", a=2), packet("H", a=1, b=513), packet("X", 1, 0)])
def test_a_supervisor_that_does_not_greet_first_is_not_heard(peer: Peer, said: bytes) -> None:
    peer.connection = peer.dial()
    peer.say(said)
    assert is_dropped(peer)


@given(st.binary(max_size=40) | st.binary(min_size=16, max_size=16))
def test_any_packet_is_an_answer_or_refused(said: bytes) -> None:
    try:
        answer = wire.parse(said)
    except wire.ProtocolError:
        return
    assert isinstance(answer, wire.Answer)


def test_a_descriptor_that_is_no_terminal_is_refused_and_closed(peer: Peer) -> None:
    peer.greet()
    before = len(list(Path("/proc/self/fd").iterdir()))
    command = started(peer, terminal=True)
    reading, writing = os.pipe()
    peer.say(packet("A", command.command_id, 7), reading)
    with pytest.raises(UnansweredError):
        command.started.result(SOON)
    assert is_dropped(peer)
    os.close(writing)
    os.close(reading)
    peer.hang_up()
    del command
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_descriptors_that_nobody_asked_for_are_closed(peer: Peer) -> None:
    peer.greet()
    command = started(peer)
    reading, writing = os.pipe()
    peer.say(packet("A", command.command_id, 7), writing)
    command.started.result(SOON)
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_commands_go_on_while_the_connection_is_lost(peer: Peer) -> None:
    peer.greet()
    goes_on, ends, is_lost = running(peer), running(peer), running(peer)
    unanswered = started(peer)
    peer.hang_up()
    with pytest.raises(UnansweredError):
        unanswered.started.result(SOON)
    peer.link.leave(unanswered, kill=True)
    with pytest.raises(UnheardError):
        peer.link.kill(goes_on)
    known = [packet("A", goes_on.command_id, 7), packet("X", ends.command_id, 3), packet("A", unanswered.command_id, 8)]
    peer.greet(*known)
    assert {peer.hear()[:2], peer.hear()[:2]} == {("K", goes_on.command_id), ("K", unanswered.command_id)}
    assert (goes_on.exit_code, ends.exit_code) == (None, 3)
    assert (is_lost.exit_code, is_lost.is_lost) == (137, True)


def test_commands_of_a_former_worker_can_be_claimed(peer: Peer) -> None:
    peer.greet(packet("A", 11, 7), packet("X", 12, 3), packet("A", 13, 9))
    assert peer.link.running() == 2
    peer.say(packet("X", 13, 5, flags=2))
    runs, ended = peer.link.claim(11), peer.link.claim(12)
    assert runs is not None and ended is not None
    assert peer.link.claim(14) is None
    assert (runs.exit_code, ended.exit_code) == (None, 3)
    peer.say(packet("X", 11, 4))
    runs.news.wait()
    assert runs.exit_code == 4
    lost = peer.link.claim(13)
    assert lost is not None and (lost.exit_code, lost.is_lost) == (5, True)


def test_the_end_of_the_supervisor_ends_all_commands_after_what_it_has_said_last(links: Links, link: Link) -> None:
    child = subprocess.Popen(
        ["sh", "-c", "read go"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # The child only lives and dies; the packets are those of the test's own process.
    link.expect(child.pid)
    link._pid = os.getpid()
    peer = Peer(links, link)
    peer.greet()
    ends, is_lost = running(peer), running(peer)
    peer.say(packet("X", ends.command_id, 6))
    child.send_signal(signal.SIGKILL)
    is_lost.news.wait()
    assert (ends.exit_code, ends.is_lost) == (6, False)
    assert (is_lost.exit_code, is_lost.is_lost) == (137, True)
    child.wait()
    child.communicate()


def test_the_workers_own_commands_are_no_commands_of_clients(peer: Peer) -> None:
    peer.greet()
    null = os.open(os.devnull, os.O_RDWR)
    command = peer.link.start(null, None, [null, null, null], is_own=True)
    os.close(null)
    assert peer.hear()[:2] == ("S", command.command_id)
    peer.say(packet("A", command.command_id, 7))
    assert command.started.result(SOON)[0] == wire.Started(command.command_id, 7)
    assert peer.link.running() == 0
    peer.link.leave(command)
    assert peer.link.running() == 0
    peer.say(packet("X", command.command_id))
    assert peer.hear() == ("F", command.command_id, 0)


def test_own_commands_of_a_former_worker_are_killed_and_forgotten(peer: Peer) -> None:
    mine, clients = wire.OWN | 5, 6
    peer.greet(packet("A", mine, 7), packet("A", clients, 8), packet("X", wire.OWN | 9))
    assert {peer.hear(), peer.hear()} == {("K", mine, 0), ("F", wire.OWN | 9, 0)}
    peer.say(packet("Q", mine, 0))
    peer.say(packet("X", mine, 137, flags=1))
    assert peer.hear() == ("F", mine, 0)
    assert peer.link.running() == 1
    assert peer.link.claim(clients) is not None
