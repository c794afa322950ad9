"""A worker is killed again and again under full streams of output and input: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.boxes import create, execute, start, state
from support.cluster import Cluster, Worker
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

KILLS = 4
CAT = "cat; exit {code}"
NUMBER = "awk '{{ print NR \":\" $0; fflush() }}'; exit {code}"
BOTH = "while read line; do echo $line; echo $line >&2; done; exit {code}"
RAW = "stty raw -echo; echo; exec cat"  # on a terminal, where input has no end


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """A cluster for this module alone: its worker is killed again and again."""
    cluster: Cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@dataclass
class Client:
    """Feeds one command, and takes its output, over as many connections as it takes. It sends nothing twice."""

    cluster: Cluster
    box: str
    script: str
    code: int
    rng: random.Random
    execution: str = ""
    sent: bytes = b""
    output: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    complaints: list[str] = field(default_factory=list)
    exit_code: int | None = None
    connections: int = 0
    has_ended_input: bool = False
    came: asyncio.Event = field(default_factory=asyncio.Event)  # output

    async def run(self, stopping: asyncio.Event) -> None:
        path = f"/v1/boxes/{self.box}/executions/{self.execution}/attach"
        while self.exit_code is None:
            received = sum(map(len, self.output.values()))
            url = f"ws://127.0.0.1:{self.cluster.port}{path}?received={received}"
            try:
                async with connect(url, compression=None, max_size=None, proxy=None, ping_interval=None) as connection:
                    self.connections += 1
                    feeding = asyncio.create_task(self._feed(connection, stopping))
                    try:
                        await self._take(connection)
                    finally:
                        feeding.cancel()
                        await asyncio.gather(feeding, return_exceptions=True)
            except InvalidStatus as refused:
                assert refused.response.status_code in (409, 503), refused
                await asyncio.sleep(0.2)

    async def _feed(self, connection: ClientConnection, stopping: asyncio.Event) -> None:
        await self._until(1 if self.script == RAW else 0)  # the terminal is raw
        while not stopping.is_set():
            line = self.rng.randbytes(self.rng.randrange(1, 700)).hex().encode() + b"\n"
            await connection.send(line)
            self.sent += line
            await asyncio.sleep(self.rng.random() * 0.05)
        if self.script == RAW:
            await self._until(1 + len(self.sent))
            await connection.send(json.dumps({"type": "signal", "sig": self.code - 128}))
        elif not self.has_ended_input:
            await connection.send(json.dumps({"type": "stdin_eof"}))
            self.has_ended_input = True

    async def _until(self, size: int) -> None:
        while len(self.output[1]) < size:
            self.came.clear()
            await self.came.wait()

    async def _take(self, connection: ClientConnection) -> None:
        try:
            while True:
                frame = await connection.recv()
                if isinstance(frame, bytes):
                    self.output[frame[0]] += frame[1:]
                    self.came.set()
                elif (message := json.loads(frame))["type"] == "exit":
                    self.exit_code = message["exit_code"]
                else:
                    self.complaints.append(message["message"])
        except ConnectionClosed:
            pass

    @property
    def expected(self) -> dict[int, bytes]:
        if self.script == NUMBER:
            lines = self.sent.splitlines(keepends=True)
            return {1: b"".join(b"%d:%s" % (number, line) for number, line in enumerate(lines, 1)), 2: b""}
        if self.script == RAW:
            return {1: b"\n" + self.sent, 2: b""}
        return {1: self.sent, 2: self.sent if self.script == BOTH else b""}


async def run_all(clients: list[Client], stopping: asyncio.Event) -> None:
    await asyncio.wait_for(asyncio.gather(*(client.run(stopping) for client in clients)), 120)


def under_kills(worker: Worker, clients: list[Client], rng: random.Random) -> None:
    """Run the clients in a thread, and meanwhile kill and restart the worker."""
    loop, stopping = asyncio.new_event_loop(), asyncio.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop.run_until_complete, run_all(clients, stopping))
        for _ in range(KILLS):
            time.sleep(0.5 + rng.random())  # the moment has to be any
            worker.kill()
            worker.start()
        loop.call_soon_threadsafe(stopping.set)
        running.result()
    loop.close()


@pytest.mark.parametrize(("count", "scripts"), [(50, [CAT, NUMBER, BOTH]), (20, [RAW])], ids=["pipes", "terminals"])
def test_commands_under_full_streams_lose_and_double_nothing_when_the_worker_is_killed(
    cluster: Cluster, count: int, scripts: list[str]
) -> None:
    rng = random.Random(count)
    box = create(cluster, memory_mib=512)
    start(cluster, box)
    clients = [
        Client(cluster, box, scripts[number % len(scripts)], 143 if scripts == [RAW] else number, random.Random(number))
        for number in range(count)
    ]
    for client in clients:
        client.execution = execute(cluster, box, client.script.format(code=client.code), tty=client.script == RAW)
    under_kills(cluster.workers[0], clients, rng)
    for client in clients:
        assert client.output == client.expected, (client.script, len(client.sent), client.complaints)
        assert client.exit_code == client.code
        assert client.connections > 1
        assert not [text for text in client.complaints if "lost" in text]
        found = state(cluster, box, client.execution)
        assert (found["status"], found["error_message"]) == ("completed", None)
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
