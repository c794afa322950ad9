"""TLS handshakes that nobody finishes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support import certs

from boxlite_server.coordinator.http import handshakes
from boxlite_server.coordinator.http.handshakes import Handshakes
from boxlite_server.tls import certificates, files

CA = certificates.new_ca("one")
MOST = 4


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


def with_server(directory: Path, story: Callable[[int], Awaitable[None]]) -> list[tuple[str, int, str]]:
    """Run the story with a server, and return what it has noted as refused."""
    refused: list[tuple[str, int, str]] = []

    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        tls = files.Watched(certs.written(directory, "c", certs.coordinator(CA)))
        server = Handshakes(listener, tls, Echo, 100, 10.0, lambda *noted: refused.append(noted))
        try:
            await asyncio.wait_for(story(listener.getsockname()[1]), 60)
        finally:
            await server.close()
            listener.close()

    asyncio.run(run())
    return refused


async def encrypted(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cadata=CA.certificate.decode())
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"


def test_the_oldest_gives_way_and_who_has_shaken_hands_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "MAX_HANDSHAKES", MOST)

    async def story(port: int) -> None:
        early = await encrypted(port)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST)]
        late = await encrypted(port)
        assert await silent[0][0].read() == b""  # it was broken off
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent[-1][0].read(), 0.2)
        await echoes(*early)
        await echoes(*late)
        for _, writer in (early, late, *silent):
            writer.close()

    with_server(tmp_path, story)


def test_they_end_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_SECONDS", 0.2)

    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()

    with_server(tmp_path, story)


def test_plain_http_gets_no_answer(tmp_path: Path) -> None:
    async def story(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1" not in await reader.read()
        writer.close()

    assert with_server(tmp_path, story) == [("127.0.0.1", 0, "")]
