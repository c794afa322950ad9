"""Input on its way from the client: frames that are cut into fragments, and the queue in front of the command."""

from __future__ import annotations

import asyncio
import random

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from boxlite_server.coordinator.http.attach.fragments import Fragmenter
from boxlite_server.coordinator.http.attach.input_queue import INPUT_BYTES, InputQueue, Mark, Piece

SIZE = 64


def frames_of(seed: int) -> tuple[bytes, list[tuple[Opcode, bytes]]]:
    """What a client sends, and the messages and pings in it."""
    rng, client = random.Random(seed), ClientProtocol(parse_uri("ws://here"), state=OPEN)
    sent: list[tuple[Opcode, bytes]] = []
    for _ in range(8):
        data = rng.randbytes(rng.choice([0, 1, 63, 64, 65, 125, 126, 127, 128, 1000, 65535, 65536, 70001]))
        if rng.random() < 0.2:
            sent.append((Opcode.PING, data[:125]))
            client.send_ping(data[:125])
            continue
        opcode = rng.choice([Opcode.TEXT, Opcode.BINARY])
        send = client.send_text if opcode is Opcode.TEXT else client.send_binary
        sent.append((opcode, data))
        if rng.random() < 0.5:
            send(data)
        else:
            at = rng.randint(0, len(data))
            send(data[:at], fin=False)
            client.send_continuation(data[at:], fin=True)
    return b"".join(client.data_to_send()), sent


@pytest.mark.parametrize("seed", range(20))
def test_messages_of_any_size_arrive_unchanged_in_small_fragments(seed: int) -> None:
    stream, sent = frames_of(seed)
    rng, fragmenter = random.Random(seed), Fragmenter(SIZE)
    server = ServerProtocol(state=OPEN, max_size=(None, max(SIZE, 125)))
    got: list[tuple[Opcode, bytes]] = []
    begun = None
    while stream:
        size = rng.choice([1, 2, 3, 7, 100, 5000, 100_000])
        server.receive_data(fragmenter.push(stream[:size]))
        stream = stream[size:]
        assert server.parser_exc is None
        for event in server.events_received():
            assert isinstance(event, Frame)
            data = bytes(event.data)
            if event.opcode is Opcode.PING:
                got.append((Opcode.PING, data))
                continue
            begun = (event.opcode, data) if begun is None else (begun[0], begun[1] + data)
            if event.fin:
                got.append(begun)
                begun = None
    assert got == sent
    assert fragmenter.opcode is None


def test_a_frame_that_has_begun_is_known() -> None:
    client, fragmenter = ClientProtocol(parse_uri("ws://here"), state=OPEN), Fragmenter(SIZE)
    client.send_binary(bytes(1000))
    stream = b"".join(client.data_to_send())
    for byte in range(len(stream) - 1):
        fragmenter.push(stream[byte : byte + 1])
        assert fragmenter.opcode == Opcode.BINARY
    fragmenter.push(stream[-1:])
    assert fragmenter.opcode is None


async def _waits(queue: InputQueue, piece: Piece) -> bool:
    try:
        await asyncio.wait_for(queue.put(piece), 0.01)
    except TimeoutError:
        return True
    return False


def test_input_is_joined_bounded_and_keeps_its_end() -> None:
    async def scenario() -> None:
        queue = InputQueue()
        for entry in (Piece(b"a"), Piece(b"b", more=True), Mark.END, Piece(b"c")):
            await queue.put(entry)
        assert [await queue.get() for _ in range(3)] == [Piece(b"ab", more=True), Mark.END, Piece(b"c")]
        for _ in range(INPUT_BYTES // 65536):
            await queue.put(Piece(bytes(65536)))
        assert await _waits(queue, Piece(b"more"))
        taken = await queue.get()
        assert isinstance(taken, Piece)
        assert len(taken.data) == 4 * 65536
        assert not await _waits(queue, Piece(b"more"))

    asyncio.run(scenario())


def test_entries_without_bytes_fill_the_queue_too() -> None:
    async def scenario() -> None:
        queue = InputQueue()
        for _ in range(INPUT_BYTES):
            try:
                await asyncio.wait_for(queue.put(Mark.END), 0.01)
            except TimeoutError:
                return
        raise AssertionError("the queue takes any number of them")

    asyncio.run(scenario())
