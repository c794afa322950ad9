"""What a large fleet costs a coordinator: 1,000 workers that send heartbeats as real ones do, and 100,000 boxes.

Shows the coordinator's share of a core, and what two reads cost a client at 50 requests per second in all: a page of
100 boxes, and a box by its name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.cluster import Cluster

from boxlite_server import ids
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.store import Box, Store, Worker

from ..case import Bench, Case
from ..harness import Figure, Result, percentile

WORKERS, BOXES, SECONDS = 1000, 100_000, 30.0  # seconds of each phase
BEAT_SECONDS = 5.0
INVENTORY_SECONDS = 60.0
READS_PER_SECOND = 50
PAGE = 100
SECRET, EPOCH, LIFE = ids.secret(), ids.new_id(), ids.new_id()
STARTED_AT = time.time()
SPEC = Spec(memory_mib=128)


async def fill(path: Path, workers: int, boxes: int) -> dict[str, list[dict[str, Any]]]:
    """Write the rows; what each worker has to report."""
    store = await Store.open(path)
    now = time.time()
    held: dict[str, list[dict[str, Any]]] = {ids.new_id(): [] for _ in range(workers)}
    names = list(held)
    async with store.transaction() as tx:
        for number, worker_id in enumerate(names):
            await tx.put_worker(
                Worker(
                    id=worker_id,
                    name=f"simulated-{number}",
                    url="http://127.0.0.1:1",
                    secret=SECRET,
                    status="active",
                    epoch=EPOCH,
                    labels={},
                    cpus=16,
                    memory_mib=65536,
                    max_boxes=None,
                    version="",
                    engine_version="",
                    registered_at=now,
                    last_heartbeat=now,
                )
            )
        for number in range(boxes):
            worker_id, runs = names[number % workers], number % 5 == 0
            pid, exit_code = (1000 + number, None) if runs else (None, 0)
            status = "running" if runs else "stopped"
            row = Box(
                id=ids.new_id(),
                prefix="default",
                name=f"box-{number}",
                worker_id=worker_id,
                generation=1,
                status=status,
                spec=SPEC,
                cpus=1,
                memory_mib=128,
                labels={},
                pid=pid,
                exit_code=exit_code,
                error=None,
                created_at=now + number / 1e6,
                updated_at=now,
                started_at=now,
                stopped_at=None,
            )
            await tx.insert_box(row._replace(desired=status, engine_life=LIFE if runs else None))
            held[worker_id].append(
                {
                    "box_id": row.id,
                    "generation": 1,
                    "status": status,
                    "pid": pid,
                    "exit_code": exit_code,
                    "interrupted": False,
                }
            )
    await store.close()
    return held


async def request(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """One request on a connection of its own, as workers make them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    answer = await reader.read(-1)
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


class Client:
    """Reads over connections that are kept, as the SDKs do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        while self._idle:
            kept = self._idle.pop()
            with suppress(OSError, asyncio.IncompleteReadError):  # closed since, after its idle time
                return await self._get(kept, path)
        return await self._get(await asyncio.open_connection("127.0.0.1", self._port), path)

    async def _get(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str) -> tuple[int, bytes]:
        reader, writer = connection
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r")[0]))
        self._idle.append(connection)
        return int(head.split(b" ", 2)[1]), body


class SimulatedWorker:
    """Registers, and then beats: its boxes go along once a minute, or when it is asked for them."""

    def __init__(self, port: int, number: int, worker_id: str, boxes: list[dict[str, Any]]) -> None:
        self._port = port
        self._id = worker_id
        self._boxes = sorted(boxes, key=lambda box: (box["box_id"], box["generation"]))
        self._name = f"simulated-{number}"
        text = json.dumps([LIFE, self._boxes], separators=(",", ":"))
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.beats = 0

    async def register(self) -> None:
        status, body = await request(
            self._port,
            "POST",
            "/v1/admin/workers",
            {
                "id": self._id,
                "name": self._name,
                "url": "http://127.0.0.1:1",
                "secret": SECRET,
                "epoch": EPOCH,
                "started_at": STARTED_AT,
                "labels": {},
                "capacity": {"cpus": 16, "memory_mib": 65536, "max_boxes": None, "cpu_limit": 256},
                "version": "0",
                "engine_version": "0",
                "engine_life": LIFE,
                "boxes": self._boxes,
            },
        )
        assert status == 200, body

    async def live(self, rng: random.Random) -> None:
        sent_at = time.monotonic() + rng.uniform(-INVENTORY_SECONDS, 0)
        wanted = False
        await asyncio.sleep(rng.uniform(0, BEAT_SECONDS))
        while True:
            beat: dict[str, Any] = {"epoch": EPOCH, "inventory": self._digest, "engine_life": LIFE}
            if wanted or time.monotonic() - sent_at >= INVENTORY_SECONDS:
                beat["boxes"], sent_at = self._boxes, time.monotonic()
            status, body = await request(self._port, "POST", f"/v1/admin/workers/{self._id}/heartbeat", beat)
            assert status == 200, body
            wanted = bool(json.loads(body).get("send_inventory"))
            self.beats += 1
            if wanted and "boxes" not in beat:
                continue  # it does not wait for what it was asked for
            await asyncio.sleep(BEAT_SECONDS * rng.uniform(0.9, 1.1))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(name: str, title: str, pid: int, seconds: float, workers: list[SimulatedWorker]) -> Figure:
    """The coordinator's share of a core during some seconds."""
    beats, cpu, begun = sum(worker.beats for worker in workers), cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - begun
    rate = (sum(worker.beats for worker in workers) - beats) / took
    title = f"the coordinator with {title}, {rate:.0f} heartbeats/s"
    return Figure(name, title, (cpu_seconds(pid) - cpu) / took, "cores")


async def read_steadily(
    seconds: float, reads: dict[str, Callable[[], Awaitable[tuple[int, bytes]]]]
) -> dict[str, list[float]]:
    """Each read in turn at a fixed pace, whether those before have ended or not; how long each took."""
    times: dict[str, list[float]] = {name: [] for name in reads}

    async def read(name: str) -> None:
        begun = time.perf_counter()
        status, body = await reads[name]()
        assert status == 200, body
        times[name].append((time.perf_counter() - begun) * 1000)

    tasks, begun = [], time.monotonic()
    for number in range(int(seconds * READS_PER_SECOND)):
        await asyncio.sleep(max(begun + number / READS_PER_SECOND - time.monotonic(), 0))
        tasks.append(asyncio.create_task(read(list(reads)[number % len(reads)])))
    await asyncio.gather(*tasks)
    return times


async def phases(cluster: Cluster, held: dict[str, list[dict[str, Any]]], boxes: int, seconds: float) -> list[Result]:
    assert cluster.coordinator is not None
    rng, port, pid = random.Random(1), cluster.port, cluster.coordinator.pid
    workers = [SimulatedWorker(port, number, *held_by) for number, held_by in enumerate(held.items())]
    begun = time.monotonic()
    for worker in workers:
        await worker.register()
    results: list[Result] = [
        Figure("fleet-register", f"{len(workers)} workers register with inventories", time.monotonic() - begun, "s")
    ]
    lives = [asyncio.create_task(worker.live(rng)) for worker in workers]
    await asyncio.sleep(BEAT_SECONDS * 2)
    results.append(await measured("fleet-idle", "heartbeats alone", pid, seconds, workers))
    client = Client(port)
    reads: dict[str, Callable[[], Awaitable[tuple[int, bytes]]]] = {
        f"a page of {PAGE} of {boxes} boxes": lambda: client.get(f"/v1/boxes?pageSize={PAGE}"),
        "a box by its name": lambda: client.get(f"/v1/boxes/box-{rng.randrange(boxes)}"),
    }
    load = asyncio.create_task(measured("fleet-read", "heartbeats and reads", pid, seconds, workers))
    for name, times in (await read_steadily(seconds, reads)).items():
        results.append(Figure("fleet-median", f"{name}, median", statistics.median(times), "ms"))
        results.append(Figure("fleet-p99", f"{name}, p99", percentile(times, 99), "ms"))
    results.append(await load)
    for life in lives:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life
    return results


def fleet(bench: Bench) -> Iterator[Result]:
    workers, boxes = bench.rounds(WORKERS), bench.rounds(BOXES)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        cluster = Cluster(Path(name), "unix:///nowhere")
        held = asyncio.run(fill(cluster.directory / "coordinator.db", workers, boxes))
        cluster.start_coordinator()
        try:
            yield from asyncio.run(phases(cluster, held, boxes, SECONDS * bench.share))
        finally:
            cluster.close()


CASES = [Case("fleet", fleet, on_demand=True)]
