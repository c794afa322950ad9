"""Clients that are slow, silent or too many, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import random
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse
from support import certs
from websockets.asyncio.client import connect

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http import connections, validation
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.http.connections import ConnectionLimits
from boxlite_server.coordinator.server import Server
from boxlite_server.tls import certificates
from boxlite_server.tls.files import Watched

GET = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/boxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
SHORT = 0.3  # seconds; what is silent is looked for once in a second
PATIENCE = 30.0  # for what has to happen


CA = certificates.new_ca("one")
TRUSTING = ssl.create_default_context(cadata=CA.certificate.decode())
over_tls = False  # what the fixture below says


@pytest.fixture(autouse=True, params=[False, True], ids=["http", "https"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All holds over TLS too."""
    monkeypatch.setattr(sys.modules[__name__], "over_tls", request.param)


def scheme() -> str:
    return "wss" if over_tls else "ws"


def trust() -> ssl.SSLContext | None:
    return TRUSTING if over_tls else None


class Client:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """The status, headers and JSON of the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def health(self) -> int:
        await self.send(GET)
        return (await self.answer())[0]

    async def end(self) -> bytes:
        """What comes before the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


class Site:
    """A server with `limits`, of the coordinator's application or of another one."""

    def __init__(self, port: int, server: Server) -> None:
        self.port = port
        self.connections = server._connections

    async def client(self, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        limit = 1024 if receive_buffer else 2**16
        tls = {"ssl": TRUSTING, "server_hostname": "127.0.0.1"} if over_tls else {}
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit, **tls)
        return Client(reader, writer)

    @property
    def count(self) -> int:
        return len(self.connections.connections)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def site(path: Path, app: Any = None, **limits: Any) -> AsyncIterator[Site]:
    chosen = ConnectionLimits(**limits)
    app = app or create_app(await Core.open(path / "c.db", None), body_seconds=chosen.body)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        files = certs.written(path, "c", certs.coordinator(CA))
        server = Server(app, chosen, asyncio.Event(), tls=Watched(files) if over_tls else None)
        serving = asyncio.create_task(server._serve([listener]))
        await until(lambda: server.started)
        try:
            yield Site(listener.getsockname()[1], server)
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            server.should_exit = True
            await serving


def run(path: Path, story: Callable[[Site], Awaitable[None]], app: Any = None, **limits: Any) -> None:
    async def whole() -> None:
        async with site(path, app, **limits) as found:
            await story(found)

    asyncio.run(whole())


def error_of(answer: tuple[int, dict[str, str], Any]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["x-request-id"] == body["error"]["request_id"]
    return status, body["error"]["code"]


def test_pooled_connections_are_kept_for_longer_than_any_common_pool_keeps_them() -> None:
    assert ConnectionLimits().idle >= 75


def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        fresh, used = await site.client(), await site.client()
        assert await used.health() == 200
        assert (await fresh.end(), await used.end()) == (b"", b"")

    run(tmp_path, story, idle=SHORT)


def test_a_head_that_comes_byte_by_byte_is_given_up(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        fresh, used = await site.client(), await site.client()
        assert await used.health() == 200

        async def trickle(client: Client) -> tuple[int, dict[str, str], Any]:
            answer = asyncio.create_task(client.answer())
            await client.send(GET[:-2] + b"X-Slow: ")
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    await client.send(b"a")
                await asyncio.sleep(0.05)
            return await answer

        for answer in await asyncio.gather(trickle(fresh), trickle(used)):
            assert error_of(answer) == (408, "timeout")
            assert answer[1]["connection"] == "close"

    run(tmp_path, story, head=SHORT)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("boxes", "application/json"),
        ("oauth/tokens", "application/x-www-form-urlencoded"),
        ("boxes/import", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_stalls_is_given_up(tmp_path: Path, path: str, kind: str, framing: str) -> None:
    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode())
        await client.send(b"1\r\n")
        assert error_of(await client.answer()) == (408, "timeout")
        assert await client.end() == b""

    run(tmp_path, story, body=SHORT)


def _sent(data: bytes, framing: str) -> bytes:
    """A request whose body is `data`, in chunks of many sizes if it is chunked."""
    head = b"PUT / HTTP/1.1\r\nHost: x\r\n"
    if framing == "whole":
        return head + b"Content-Length: %d\r\n\r\n" % len(data) + data
    request, at, size = [head, b"Transfer-Encoding: chunked\r\n\r\n"], 0, 1
    while at < len(data):
        request.append(b"%x\r\n%b\r\n" % (len(data[at : at + size]), data[at : at + size]))
        at, size = at + size, size * 3 % 1_000_003
    return b"".join([*request, b"0\r\n\r\n"])


@pytest.mark.parametrize("framing", ["whole", "chunked"])
def test_a_large_body_arrives_as_it_was_sent_and_the_next_request_after_it(tmp_path: Path, framing: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        digest, largest, more = hashlib.sha256(), 0, True
        while more:
            message = await receive()
            digest.update(message["body"])
            largest, more = max(largest, len(message["body"])), message["more_body"]
        answer = json.dumps([digest.hexdigest(), largest]).encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    bodies = [random.Random(seed).randbytes(5_000_000 + seed) for seed in range(3)]

    async def story(site: Site) -> None:
        client = await site.client()
        sending = asyncio.create_task(client.send(b"".join(_sent(body, framing) for body in bodies)))
        for body in bodies:
            _, _, (digest, largest) = await client.answer()
            assert digest == hashlib.sha256(body).hexdigest()
            assert largest < 1_000_000, "the body is held whole"
        await sending

    run(tmp_path, story, app)


def test_a_slow_body_takes_as_long_as_it_takes(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(POST)
        begun = asyncio.get_running_loop().time()
        body = b'{"image": 3}'.ljust(100)
        for at in range(0, 100, 10):
            await client.send(body[at : at + 10])
            await asyncio.sleep(0.1)
        assert error_of(await client.answer()) == (400, "invalid_argument")
        assert asyncio.get_running_loop().time() - begun > 2 * SHORT

    run(tmp_path, story, body=SHORT, head=SHORT)


def test_json_that_comes_drop_by_drop_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_SECONDS", SHORT)

    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(POST)
        answer = asyncio.create_task(client.answer())
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                await client.send(b" ")
            await asyncio.sleep(0.05)
        assert error_of(await answer) == (408, "timeout")

    run(tmp_path, story)


def test_the_answer_to_a_request_that_was_cut_off_is_not_replayed(tmp_path: Path) -> None:
    body = b'{"image": 3}'.ljust(100)
    keyed = POST.replace(b"\r\n\r\n", b"\r\nIdempotency-Key: once\r\n\r\n")

    async def story(site: Site) -> None:
        silent, gone, whole = [await site.client() for _ in range(3)]
        await silent.send(keyed + body[:50])
        assert error_of(await silent.answer()) == (408, "timeout")
        await gone.send(keyed + body[:50])
        gone.writer.close()
        await whole.send(keyed + body)
        status, headers, answer = await whole.answer()
        assert (status, answer["error"]["message"]) == (400, "body: 'image': 3 is not of type 'string'")
        assert "idempotency-replayed" not in headers

    run(tmp_path, story, body=SHORT)


def test_the_longest_idle_connection_makes_room_for_a_new_one(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        clients = [await site.client() for _ in range(3)]
        for client in clients:
            assert await client.health() == 200
        assert await clients[0].health() == 200  # now the second one is idle for longest
        new = await site.client()
        assert await new.health() == 200
        assert await clients[1].end() == b""
        assert [await client.health() for client in (clients[0], clients[2], new)] == [200, 200, 200]

    run(tmp_path, story, count=3)


def test_unfinished_heads_keep_nobody_out(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        slow = [await site.client() for _ in range(20)]
        for client in slow:
            with contextlib.suppress(ConnectionError):  # of those that gave way
                await client.send(GET[:20])
        assert await (await site.client()).health() == 200
        assert site.count <= 4

    run(tmp_path, story, count=4)


def test_where_every_connection_is_in_use_a_new_one_is_told_to_try_again(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        busy = [await site.client() for _ in range(3)]
        for client in busy:
            await client.send(POST)
        await until(lambda: not site.connections.idle)
        for request in (GET, GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")):
            new = await site.client()
            await new.send(request)
            status, headers, body = await new.answer()
            assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
            assert headers["connection"] == "close"
            assert await new.end() == b""
        await busy[0].send(b'{"image": 3}'.ljust(100))
        assert error_of(await busy[0].answer())[0] == 400
        assert await (await site.client()).health() == 200

    run(tmp_path, story, count=3)


def test_many_more_connections_than_can_be_served_are_closed(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        clients = [await site.client() for _ in range(200)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                await client.send(POST)
        for client in clients:  # wait until the server has seen them all
            if client.reader.at_eof():
                client.writer.close()
        assert site.count <= 3 + 64

    run(tmp_path, story, count=3)


async def lifespan(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answers never end."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": b"x" * 100_000})
    else:
        await StreamingResponse(_endless())(scope, receive, send)


async def _endless() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0)  # so that the end of the connection is noticed
        yield b"x" * 100_000


def test_a_client_that_does_not_read_costs_no_memory_and_is_given_up(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        client = await site.client(receive_buffer=4096)
        await client.send(GET)
        await until(lambda: site.count)
        (held,) = site.connections.connections
        await until(held.transport.get_write_buffer_size)
        while site.count:
            assert held.transport.get_write_buffer_size() < 500_000
            await asyncio.sleep(0.01)

    run(tmp_path, story, endless, unread=SHORT)


def test_a_client_that_does_not_read_its_websocket_is_given_up(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        async with connect(f"{scheme()}://127.0.0.1:{site.port}/", ssl=trust(), max_queue=1, close_timeout=0):
            await until(lambda: not site.count)

    run(tmp_path, story, endless, unread=SHORT)


def test_a_client_that_reads_slowly_is_served(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        client = await site.client(receive_buffer=4096)
        await client.send(GET)
        for _ in range(30):
            assert await client.reader.readexactly(100_000)
            await asyncio.sleep(0.1)

    run(tmp_path, story, endless, unread=2.0)


CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def test_a_client_that_ignores_the_end_of_its_connection_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS the client has to answer it; this one reads nothing at all."""
    monkeypatch.setattr(connections, "GOODBYE_SECONDS", SHORT)

    async def story(site: Site) -> None:
        with await asyncio.to_thread(socket.create_connection, ("127.0.0.1", site.port)) as plain:
            wrap = functools.partial(TRUSTING.wrap_socket, plain, server_hostname="127.0.0.1")
            client = await asyncio.to_thread(wrap) if over_tls else plain
            await until(lambda: site.count)
            client.sendall(CLOSING)
            await until(lambda: not site.count)

    run(tmp_path, story)


def test_a_slow_client_gets_all_of_a_last_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "GOODBYE_SECONDS", SHORT)
    size = 24_000_000  # more than the kernel takes

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response(b"x" * size)(scope, receive, send)

    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(CLOSING)
        await asyncio.sleep(10 * SHORT)  # meanwhile the connection is closed, and most of the answer is unsent
        assert len(await client.end()) > size

    run(tmp_path, story, app)


def test_answers_that_nobody_reads_hold_no_connection(tmp_path: Path) -> None:
    """Many requests at once, whose answers fit into the buffers."""

    async def story(site: Site) -> None:
        client = await site.client(receive_buffer=4096)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                client.writer.write(GET.replace(b"/v1/health", b"/openapi.json"))
        await until(lambda: not site.count)

    run(tmp_path, story, unread=SHORT, idle=SHORT)


BROKEN_HANDSHAKES = {
    "no key": b"GET /v1/boxes/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a POST": b"POST /v1/boxes/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a body": b"GET /v1/boxes/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Content-Length: 3\r\n\r\nabc",
    "a long header": b"GET /v1/boxes/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET /v1/boxes/x/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    + b"X: a\r\n" * 500
    + b"\r\n",
}


@pytest.mark.parametrize("kind", BROKEN_HANDSHAKES)
def test_what_is_no_handshake_gets_the_contracts_refusal(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(BROKEN_HANDSHAKES[kind])
        assert error_of(await client.answer()) == (400, "invalid_argument")
        assert await client.end() == b""

    run(tmp_path, story)
    assert not [record for record in caplog.records if record.exc_info]


def test_what_is_no_request_is_noted(tmp_path: Path) -> None:
    noted = []

    async def story(site: Site) -> None:
        site.connections.refused = lambda *what: noted.append(what)
        for raw in (b"hello", b"\x16\x03\x01\x02\x00", BROKEN_HANDSHAKES["no key"]):
            client = await site.client()
            await client.send(raw + b"\r\n\r\n")
            status, headers, _ = await client.answer()
            assert noted.pop() == ("127.0.0.1", status, headers["x-request-id"])
        client = await site.client()
        await client.send(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert (await client.answer())[0] == 431
        assert noted.pop()[1] == 431
        good = await site.client()
        assert await good.health() == 200
        await good.send(POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked") + b"zzz\r\n")
        assert (await good.answer())[0] == 400  # this request has a line of its own
        assert not noted

    run(tmp_path, story)


def test_a_broken_chunk_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(site: Site) -> None:
        chunked = POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
        waiting = await site.client()
        await waiting.send(chunked)
        await waiting.send(b"zzz\r\n")
        assert error_of(await waiting.answer()) == (400, "invalid_argument")

    run(tmp_path, story)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_broken_chunk_in_the_middle_of_an_answer_ends_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(site: Site) -> None:
        client = await site.client()
        await client.send(POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked"))
        await client.reader.readexactly(100_000)
        await client.send(b"zzz\r\n")
        await client.end()

    run(tmp_path, story, endless)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_message_in_tiny_pieces_arrives_whole(tmp_path: Path) -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        while sum(message.get("text") is not None for message in got) == 0:
            got.append(await receive())
        await send({"type": "websocket.close"})

    async def story(site: Site) -> None:
        async with connect(f"{scheme()}://127.0.0.1:{site.port}/", ssl=trust()) as client:
            await client.send([b"a", b"", b"b", b"cd"])
            await client.send(["é", "x"])
            await client.wait_closed()

    run(tmp_path, story, app)
    *pieces, text = got
    assert b"".join(message["bytes"] for message in pieces) == b"abcd"  # handed on as they come
    assert [message["more"] for message in pieces] == [*[True] * (len(pieces) - 1), False]
    assert text["text"] == "éx"


def test_text_that_is_not_utf8_ends_the_connection_with_1007(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(site: Site) -> None:
        client = await connect(f"{scheme()}://127.0.0.1:{site.port}/", ssl=trust()).__aenter__()
        mask = struct.pack("!I", 0)
        client.transport.write(b"\x81\x82" + mask + b"\xff\xfe")
        async with asyncio.timeout(PATIENCE):
            await client.wait_closed()
        assert client.close_code == 1007

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"

    run(tmp_path, story, app)
    assert not [record for record in caplog.records if record.exc_info]
