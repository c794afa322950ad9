"""Malformed requests in large numbers to one coordinator: made from openapi.yaml with what no honest client sends, and
from the bytes of such requests, damaged at random. None is answered with 5xx, the coordinator goes on, and takes no
more memory than after the first of them.

`make test` sends some thousands, the same ones every time; `make fuzz` sends 100,000 others in each run.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from support.cluster import Cluster
from support.hostile import HEADERS, Hostile, hostile_requests
from support.memory import resident
from support.outside import LAST, statuses

from boxlite_server.coordinator.tenants import scopes

IS_FUZZ = "BOXLITE_FUZZ_SECONDS" in os.environ
REQUESTS = 100_000 if IS_FUZZ else 4000
SEED = random.SystemRandom().randrange(2**32) if IS_FUZZ else 1
AT_ONCE = 64
SILENCE_SECONDS = 1.0  # after which a request is given up that the server does not take for whole
MOST_BYTES = 20_000  # of a request; larger ones have tests of their own
GROWTH = 24 * 2**20  # of the memory, from a quarter of the requests on

# The only answers of 5xx: to well-formed requests, where there is no worker, or which are not built.
_ALLOWED = (b"no worker", b'"unsupported"')

# What is put into requests.
_PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\xff", b"%", b"0\r\n\r\n", b"99999999999"),
    *(b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: x\r\n", b"Upgrade: websocket\r\n"),
    *(
        b"Connection: upgrade\r\n",
        b"HTTP/1.1",
        b"HTTP/0.9",
        b"HTTP/2.0",
        b"\x16\x03\x01\x02",
        b"PRI * HTTP/2.0\r\n\r\n",
    ),
]


@pytest.fixture
def coordinator(new_cluster: Any) -> Cluster:
    """Its key is that of a client who may do all that clients may."""
    cluster: Cluster = new_cluster()
    key = cluster.new_key("--prefix", "x", "--scope", ",".join(scopes.CLIENT))
    cluster.start_coordinator()
    cluster.api_key = key
    cluster.secrets.clear()  # damage may put a part of the key anywhere
    return cluster


def written(request: Hostile, key: str | None) -> bytes:
    """The bytes of a request."""
    lines = [f"{request.method} {request.target} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(request.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + request.body


def crossed(pool: list[Hostile], chance: random.Random) -> Hostile:
    """A request with what is wrong with several."""
    one, other = chance.choice(pool), chance.choice(pool)
    name = chance.choice(list(HEADERS))
    headers = {**one.headers, **(other.headers if chance.random() < 0.5 else {})}
    if chance.random() < 0.3:
        headers[name] = chance.choice(HEADERS[name])
    method = chance.choice(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", one.method))
    body = other.body if chance.random() < 0.5 else one.body
    return one._replace(headers=headers, method=method if chance.random() < 0.3 else one.method, body=body)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with some changed, left out, repeated or added; or random ones."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(1, 300))
    for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
        at, to = sorted(chance.randrange(min(len(data), 600) + 1) for _ in range(2))
        data = chance.choice(
            (
                data[:at] + chance.choice(_PIECES) + data[at:],
                data[:at] + data[min(to, at + 8) :],
                data[:at] + data[at:to] + data[at:],
                data[:at] + chance.randbytes(1) + data[at + 1 :],
                data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :] if at < len(data) else data,
                data[: len(data) - at],
            )
        )
    return data


def malformed(key: str | None, chance: random.Random) -> Iterator[bytes]:
    """Half of them from the spec, half of them damaged bytes, without end."""
    pool = [each for each in hostile_requests(lambda _: {}, (), lambda _: True) if len(each.body) <= MOST_BYTES]
    while True:
        yield written(crossed(pool, chance), key)
        yield damaged(written(crossed(pool, chance), key), chance)


async def answer(port: int, data: bytes) -> bytes:
    """All that the server says to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = b""
    try:
        writer.write(data + LAST)
        with suppress(TimeoutError):
            while piece := await asyncio.wait_for(reader.read(65536), SILENCE_SECONDS):
                answered += piece
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return answered


@pytest.mark.timeout(0 if IS_FUZZ else 300)
def test_malformed_requests_in_any_number_are_refused_and_leave_nothing(coordinator: Cluster) -> None:
    process = coordinator.coordinator
    assert process
    pid, chance, memory = process.pid, random.Random(SEED), [0]
    requests = malformed(coordinator.api_key, chance)
    seen: Counter[int] = Counter()
    faults: list[tuple[bytes, bytes]] = []

    async def send_some() -> None:
        while sum(seen.values()) < REQUESTS and len(faults) < 10:
            data = next(requests)
            seen[-1] += 1  # under way
            said = await answer(coordinator.port, data)
            found = statuses(said)
            seen[-1] -= 1
            seen[found[0] if found else 0] += 1
            if any(status >= 500 for status in found) and not any(text in said for text in _ALLOWED):
                faults.append((data[:2000], said[:2000]))
            if sum(seen.values()) > REQUESTS / 4 and not memory[0]:
                memory[0] = resident(pid)

    async def send_all() -> None:
        await asyncio.gather(*[send_some() for _ in range(AT_ONCE)])

    asyncio.run(send_all())
    print(f"seed {SEED}: {sorted(seen.items())}, memory {memory[0] >> 20} MiB, then {resident(pid) >> 20} MiB")
    assert not faults
    assert process.running
    assert process.pid == pid
    assert "Traceback" not in process.log.read_text(errors="replace"), process.tail()
    assert resident(pid) <= memory[0] + GROWTH
    assert seen[400] + seen[404] > REQUESTS / 4  # most are read as far as that
    assert coordinator.http("GET", "/v1/boxes")[0] == 200
