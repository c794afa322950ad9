"""What one tenant has, another neither finds nor changes, in every operation; and no tenant hears of workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Reply, ask, handshake
from support.keys import new_key
from support.requests import Request, requests
from support.rows import WORKER, box

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.states import SnapshotState, VolumeState, WorkerStatus
from boxlite_server.coordinator.store import Snapshot, Volume
from boxlite_server.coordinator.tenants import scopes

NAMES = {
    "box_id": "web",
    "execution_id": "e1",
    "snapshot_name": "before",
    "volume_id": "data",
    "image_id": "alpine",
    "alias": "a",
}
IDS = {**NAMES, "box_id": "box1", "volume_id": "V0lume000001"}
OF_TENANT = [request for request in requests(**NAMES) if request.is_of_tenant]
OF_TENANT += [request for request in requests(**IDS) if request.is_of_tenant and "box1" in request.path]
ABOUT_A_THING = [
    request for request in OF_TENANT if "web" in request.path or "box1" in request.path or "data" in request.path
]
# Operations that this server refuses, whatever the box.
REFUSED = {"updateInboundPolicy", "updateOutboundPolicy", "openTunnel", "closeTunnel"}
SECRETS = (WORKER.name, WORKER.id + '"', "127.0.0.1:1", "424242", "77 cpus", "678901")


class Site:
    """A coordinator with one worker, which does not listen, and what the tenant acme has there."""

    def __init__(self, runner: asyncio.Runner, core: Core) -> None:
        self.run = runner.run
        self.core = core
        self.app = create_app(core)
        self.keys = {
            "acme": self.run(new_key(core.store, scopes=scopes.TENANT))[1],
            "other": self.run(new_key(core.store, prefix="other", scopes=scopes.TENANT))[1],
            "root": self.run(new_key(core.store))[1],
        }

    async def fill(self, **worker: Any) -> None:
        now = time.time()
        row = WORKER._replace(url="http://127.0.0.1:1", cpus=77, memory_mib=678901, last_heartbeat=now + 5)
        await self.core.store.put_worker(row._replace(**worker))
        mine = box(1, prefix="acme", name="web", status="running", pid=424242, supervisor="init")
        await self.core.store.insert_box(mine)
        kept = Snapshot("s1", "box1", "before", SnapshotState.READY, now, 1, 1)
        await self.core.store.insert_snapshot(kept)
        volume = Volume("V0lume000001", "acme", "data", WORKER.id, VolumeState.READY, now, now)
        await self.core.store.insert_volume(volume)

    def send(self, who: str, request: Request, prefix: str) -> Reply:
        path = request.path.replace("{prefix}", prefix)
        headers = {"authorization": f"Bearer {self.keys[who]}", "content-type": request.media or "application/json"}
        headers["x-request-id"] = "r"  # random ones hold any number once in a while
        if request.kind == "websocket":
            return self.run(handshake(self.app, path, headers=headers)), {}, b""
        if request.body:
            headers["content-length"] = str(len(request.body))
        query = "path=%2Fetc%2Fhosts&port=80&until=stopped&timeout=0"
        parts = [request.body] if request.body else []
        return self.run(ask(self.app, request.method, path, *parts, headers=headers, query=query))

    def everything(self) -> Any:
        """What acme has, as the database tells."""
        store = self.core.store
        return (
            self.run(store.get_box("box1")),
            self.run(store.list_volumes("acme")),
            self.run(store.list_snapshots("box1")),
        )


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def opened(runner: asyncio.Runner, database: Path, **worker: Any) -> Site:
    site = Site(runner, runner.run(Core.open(database, None)))
    runner.run(site.fill(**worker))
    return site


@pytest.fixture(scope="module")
def site(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = opened(runner, tmp_path_factory.mktemp("tenants") / "c.db")
    yield site
    runner.run(site.core.close())


@pytest.mark.parametrize(
    "request_", ABOUT_A_THING, ids=[f"{each.id}-{each.kind}-{each.path}" for each in ABOUT_A_THING]
)
def test_what_another_tenant_has_is_not_there(site: Site, request_: Request) -> None:
    before = site.everything()
    for prefix in ("acme", "other", "default"):
        status, _, body = site.send("other", request_, prefix)
        same_for_all = prefix != "acme" and (request_.id in REFUSED or (request_.kind, status) == ("http", 426))
        assert status == 404 or same_for_all, body
    assert site.everything() == before


def test_lists_and_counters_of_another_tenant_are_empty(site: Site) -> None:
    def told(name: str) -> Any:
        request = next(each for each in OF_TENANT if each.id == name)
        return json.loads(site.send("other", request, "other")[2])

    assert told("listBoxes")["boxes"] == []
    assert told("listVolumes")["volumes"] == []
    assert set(told("getRuntimeMetrics").values()) == {0}


def test_an_idempotency_key_of_another_tenant_is_another_key(site: Site) -> None:
    async def create(who: str) -> Reply:
        headers = {"authorization": f"Bearer {site.keys[who]}", "idempotency-key": "same", "content-length": "2"}
        headers["content-type"] = "application/json"
        return await ask(site.app, "POST", "/v1/volumes", b"{}", headers=headers)

    mine, theirs = site.run(create("acme")), site.run(create("other"))
    assert "idempotency-replayed" not in {**mine[1], **theirs[1]}
    assert b"Idempotency-Key was used" not in theirs[2]


@pytest.mark.parametrize("trouble", ["dead", "silent", "gone", "engine", "draining", "full"])
def test_no_answer_tells_a_tenant_of_workers_and_their_hosts(
    runner: asyncio.Runner, tmp_path: Path, trouble: str
) -> None:
    worker: dict[str, Any] = {
        "dead": {},
        "silent": {"last_heartbeat": 1.0},
        "gone": {"left_at": 1.0},
        "engine": {"engine_error": "127.0.0.1:1 refuses"},
        "draining": {"status": WorkerStatus.DRAINING},
        "full": {"max_boxes": 1, "cpu_limit": 1},
    }[trouble]
    site = opened(runner, tmp_path / "c.db", **worker)
    told = 0
    for request in OF_TENANT:
        for who in ("acme", "root"):
            _, headers, body = site.send(who, request, "acme")
            text = json.dumps(headers) + body.decode()
            found = [secret for secret in SECRETS if secret in text]
            assert who == "root" or not found, (request, text)
            told += bool(found)
    assert told, "an operator is told"
    runner.run(site.core.close())
