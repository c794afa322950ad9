"""What a client has, across any number of lost connections."""

from __future__ import annotations

import random

import pytest

from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.http.attach.progress import MAX_PLACES, Progress
from boxlite_server.coordinator.http.utf8 import Utf8Joiner

TEXT = "aé€😀zß".encode()


class Log:
    """Runs of two streams, read back in pieces that differ from one reading to the next."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.runs = [(rng.choice((1, 2)), self._bytes(rng.randint(1, 9))) for _ in range(60)]
        self.ends: list[int] = []
        end = 0
        for _, data in self.runs:
            end += 5 + len(data)
            self.ends.append(end)

    def _bytes(self, size: int) -> bytes:
        start = self.rng.randrange(len(TEXT))
        return (
            bytes(self.rng.choice((TEXT * 3)[start:]) for _ in range(size))
            if self.rng.random() < 0.3
            else ((TEXT * 4)[start : start + size])
        )

    def events(self, position: int) -> list[tuple[int, int, bytes]]:
        """(position behind it, stream, data); neighbours of one stream are joined or not, as it comes."""
        found: list[tuple[int, int, bytes]] = []
        for (stream, data), end in zip(self.runs, self.ends, strict=True):
            if end <= position:
                continue
            if found and found[-1][1] == stream and self.rng.random() < 0.5:
                found[-1] = (end, stream, found[-1][2] + data)
            else:
                found.append((end, stream, data))
        return found


class Client:
    """Counts what it gets, and may lose the connection at any frame."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []

    @property
    def received(self) -> int:
        return sum(len(data) for _, data in self.frames)

    def of(self, stream: int) -> bytes:
        return b"".join(data for number, data in self.frames if number == stream)


def serve(log: Log, client: Client, progress: Progress, frames: int | None, answered: int = 0) -> pb.Delivered:
    """One connection, lost after so many frames; the client's word came through for the first `answered`."""
    joiner, sent, count = Utf8Joiner(), 0, 0
    for position, stream, data in log.events(progress.start_position):
        if out := progress.passes(joiner.push(stream, data)):
            if sent == frames:
                return progress.acknowledge(count)
            client.frames.append((stream, out))
            sent += 1
            if sent <= answered:
                count = progress.sent
        if not joiner.holds:
            progress.place(position)
    for stream, data in joiner.flush():
        if out := progress.passes(data):
            client.frames.append((stream, out))
    return progress.acknowledge(progress.sent)


@pytest.mark.parametrize("seed", range(200))
def test_a_client_that_counts_gets_every_byte_once(seed: int) -> None:
    rng = random.Random(seed)
    log, client, delivered = Log(rng), Client(), pb.Delivered()
    for _ in range(rng.randint(1, 6)):
        frames = rng.randint(0, 8)
        progress = Progress(delivered, client.received)
        delivered = serve(log, client, progress, frames, rng.randint(0, frames))
    # The server may have forgotten everything.
    if rng.random() < 0.3:
        delivered = pb.Delivered()
    serve(log, client, Progress(delivered, client.received), None)
    for stream in (1, 2):
        assert client.of(stream) == b"".join(data for number, data in log.runs if number == stream)


@pytest.mark.parametrize("seed", range(200))
def test_a_client_that_acknowledges_all_gets_every_byte_once(seed: int) -> None:
    rng = random.Random(seed)
    log, client, delivered = Log(rng), Client(), pb.Delivered()
    for _ in range(rng.randint(1, 6)):
        frames = rng.randint(0, 8)
        delivered = serve(log, client, Progress(delivered, None), frames, frames)
    serve(log, client, Progress(delivered, None), None)
    for stream in (1, 2):
        assert client.of(stream) == b"".join(data for number, data in log.runs if number == stream)


def test_what_nobody_acknowledged_comes_again() -> None:
    log, client = Log(random.Random(1)), Client()
    delivered = serve(log, client, Progress(pb.Delivered(), None), 5, 2)
    assert delivered.bytes == sum(len(data) for _, data in client.frames[:2])
    again = Client()
    serve(log, again, Progress(delivered, None), None)
    assert client.frames[2:5] != []
    assert again.received + delivered.bytes == sum(len(data) for _, data in log.runs)


def test_lost_output_counts_as_received_by_whom_it_was_told() -> None:
    progress = Progress(pb.Delivered(), 10)
    assert progress.lost(4) == 0  # the client had received that piece
    assert progress.lost(9) == 3
    assert progress.passes(b"abc") == b"abc"
    assert progress.sent == 16


def test_a_client_cannot_acknowledge_what_it_only_claims() -> None:
    known = pb.Delivered(bytes=5, position=20, bytes_at_position=5)
    progress = Progress(known, 2**62)
    assert progress.acknowledge(2**62) == known
    assert Progress(known, None).acknowledge(99) == known


def test_places_are_bounded() -> None:
    progress = Progress(pb.Delivered(), None)
    for position in range(1, 3 * MAX_PLACES):
        progress.passes(b"x")
        progress.place(position)
    assert progress.acknowledge(MAX_PLACES // 2) == pb.Delivered(
        bytes=MAX_PLACES // 2, position=MAX_PLACES // 2, bytes_at_position=MAX_PLACES // 2
    )
    last = progress.acknowledge(3 * MAX_PLACES)
    assert (last.bytes, last.position) == (3 * MAX_PLACES - 1, last.bytes_at_position)


def test_behind_a_gap_nothing_is_skipped_that_is_new() -> None:
    progress = Progress(pb.Delivered(), received=4)
    progress.gap(0)
    assert progress.passes(b"new") == b"new"
    progress.place(1000)
    acknowledged = progress.acknowledge(4)
    assert (acknowledged.bytes, acknowledged.position, acknowledged.bytes_at_position) == (4, 0, 4)
    # The client comes back and says that it has two bytes more.
    progress = Progress(acknowledged, received=6)
    assert progress.start_position == 0
    progress.gap(0)
    assert progress.passes(b"new") == b"w"
    progress.place(1000)
    acknowledged = progress.acknowledge(7)
    assert (acknowledged.bytes, acknowledged.position, acknowledged.bytes_at_position) == (7, 1000, 7)
