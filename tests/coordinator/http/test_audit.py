"""Which requests have a line in the audit, and what it says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.asgi import ask, handshake
from support.coordinator_site import CoordinatorSite
from support.fake_worker import epoch
from support.keys import new_key

from boxlite_server import errors
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.app import create_app
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.store import GAP, AuditFilter, AuditLine
from boxlite_server.coordinator.tenants import audit, scopes

pytestmark = pytest.mark.anyio

ADDRESS = "10.1.2.3"


class Site:
    """A coordinator with a worker, and a key of the prefix acme."""

    def __init__(self, database: Path | str, **options: Any) -> None:
        self._site = CoordinatorSite(database, clock=time.time, **options)
        self.worker = self._site.one
        self.key_id = self.key = ""

    async def open(self) -> Site:
        await self._site.open(self.worker)
        self.core = self._site.core
        self.app = create_app(self.core)
        key, self.key = await new_key(self.core.store)
        self.key_id = key.id
        return self

    async def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, **more: str) -> int:
        headers = {"authorization": f"Bearer {self.key if key is None else key}", "x-request-id": "req_1", **more}
        sent = () if body is None else (json.dumps(body).encode(),)
        if sent:
            headers = {"content-type": "application/json", "content-length": str(len(sent[0])), **headers}
        headers = {name: value for name, value in headers.items() if value not in ("", "Bearer ")}
        return (await ask(self.app, method, path, *sent, headers=headers, client=(ADDRESS, 1)))[0]

    async def lines(self) -> list[AuditLine]:
        await self.core.audit.write()
        return await self.core.store.find_audit(AuditFilter(), 10_000)


@pytest.fixture
async def site(database: Path | str) -> AsyncIterator[Site]:
    site = await Site(database).open()
    yield site
    await site.core.close()


async def test_a_change_has_a_line_with_what_was_made(site: Site) -> None:
    began = time.time()
    assert await site.ask("POST", "/v1/volumes", {"name": "data"}) == 201
    [line] = await site.lines()
    [volume] = await site.core.store.list_volumes("acme")
    assert began <= line.at <= time.time()
    made = f"/v1/acme/volumes/{volume.id}"
    assert line[1:] == (site.key_id, "acme", "createVolume", made, 201, "req_1", ADDRESS)


async def test_what_reads_and_succeeds_has_none(site: Site) -> None:
    for method, path in (
        ("GET", "/v1/boxes"),
        ("HEAD", "/v1/boxes/nosuch"),
        ("GET", "/v1/me"),
        ("GET", "/v1/health"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/boxes/nosuch"),
    ):
        assert await site.ask(method, path) in (200, 204, 404)
    assert await site.lines() == []


async def test_a_refusal_has_a_line_whatever_was_asked_for(site: Site) -> None:
    poor, poor_text = await new_key(site.core.store, scopes=("box:read",))
    ended, ended_text = await new_key(site.core.store, expires_at=1.0)
    worker, worker_text = await new_key(site.core.store, prefix="", scopes=(scopes.WORKER,))
    wrong = f"blx_{site.key_id}_{'0' * 43}"
    requests: list[tuple[str, str, dict[str, str], int, tuple[str, str, str]]] = [
        ("GET", "/v1/boxes", {"key": ""}, 401, ("", "", "listBoxes")),
        ("GET", "/v1/acme/boxes/box1", {"key": wrong}, 401, ("", "", "getBox")),
        ("GET", "/v1/acme/boxes/box1", {"key": ended_text}, 401, (ended.id, "", "getBox")),
        ("GET", "/v1/volumes", {"key": poor_text}, 403, (poor.id, "acme", "listVolumes")),
        ("DELETE", "/v1/boxes/box1", {"key": poor_text}, 403, (poor.id, "acme", "removeBox")),
        ("GET", "/v1/other/boxes", {}, 404, (site.key_id, "acme", "listBoxes")),
        ("GET", "/v1/admin/workers", {"key": worker_text}, 403, (worker.id, "default", "listWorkers")),
        ("GET", "/v1/boxes", {"origin": "https://evil.example"}, 403, ("", "", "listBoxes")),
        ("PATCH", "/v1/nothing/there", {}, 404, (site.key_id, "acme", "")),
    ]
    expected = []
    for method, path, more, status, line in requests:
        assert await site.ask(method, path, **more) == status, (method, path)
        expected.append((*line, status))
    lines = await site.lines()
    assert [(line.key_id, line.prefix, line.action, line.status) for line in lines] == expected
    assert {line.address for line in lines} == {ADDRESS}


async def test_a_token_is_audited_with_its_key_and_requests_with_the_token_too(site: Site) -> None:
    form = b"grant_type=client_credentials&client_id=me&client_secret=" + site.key.encode()
    headers = {"content-type": "application/x-www-form-urlencoded", "content-length": str(len(form))}
    _, _, body = await ask(site.app, "POST", "/v1/oauth/tokens", form, headers=headers)
    token = json.loads(body)["access_token"]
    assert await site.ask("POST", "/v1/volumes", {"name": "data"}, key=token) == 201
    made, used = await site.lines()
    assert (made.action, made.status, made.key_id, made.prefix) == ("createToken", 200, site.key_id, "acme")
    assert (used.action, used.key_id) == ("createVolume", site.key_id)


async def test_a_websocket_has_a_line_when_it_is_opened_or_refused(site: Site) -> None:
    path = "/v1/acme/boxes/box1/executions/nosuch/attach"
    assert await handshake(site.app, path) == 401
    assert await handshake(site.app, path, headers={"authorization": f"Bearer {site.key}"}) > 401
    refused, failed = await site.lines()
    assert (refused.action, refused.key_id, refused.status) == ("attachExecution", "", 401)
    assert (failed.action, failed.key_id, failed.target) == ("attachExecution", site.key_id, path)


async def test_a_heartbeat_has_a_line_only_when_it_is_refused(site: Site) -> None:
    async def beat(key: str) -> int:
        return await site.ask("POST", f"/v1/admin/workers/{site.worker.id}/heartbeat", {"epoch": epoch(1)}, key=key)

    _, worker = await new_key(site.core.store, prefix="", scopes=(scopes.WORKER,))
    assert await beat(worker) < 300
    assert await beat(site.key) == 403
    assert [(line.action, line.status) for line in await site.lines()] == [("heartbeat", 403)]


async def test_a_change_whose_client_left_has_a_line(site: Site) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    head = {"type": "http", "method": "POST", "path": "/v1/boxes/import", "query_string": b"", "client": (ADDRESS, 1)}
    headers = [(b"authorization", f"Bearer {site.key}".encode())]
    task = asyncio.create_task(site.app({**head, "raw_path": b"", "headers": headers}, never, send))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    [line] = await site.lines()
    assert (line.action, line.status in (0, 503)) == ("importBox", True)


async def test_keys_in_a_path_and_all_queries_are_left_out(site: Site) -> None:
    secret = site.key.split("_", 2)[2]
    await site.ask("DELETE", f"/v1/boxes/{site.key}")
    await ask(site.app, "DELETE", "/v1/boxes/box1", query="token=hidden", headers={"authorization": "Bearer x"})
    lines = await site.lines()
    assert lines[0].target == f"/v1/acme/boxes/blx_{site.key_id}_***"
    assert not [line for line in lines if secret in str(line) or "hidden" in str(line)]


async def test_a_target_of_any_length_takes_little_room(site: Site) -> None:
    await site.ask("DELETE", "/v1/boxes/" + "x" * 60_000)
    [line] = await site.lines()
    assert len(line.target) == audit.MAX_TARGET


# ---- bounds ----


async def test_no_request_waits_for_the_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise errors.DatabaseUnavailableError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("boxlite_server.coordinator.store.history.audit.Audit.insert_audit", broken)
        assert await site.ask("POST", "/v1/volumes", {"name": "data"}) == 201
        for _ in range(2):
            with pytest.raises(errors.DatabaseUnavailableError):
                await site.core.audit.write()
    assert [line.action for line in await site.lines()] == ["createVolume"]


async def test_strangers_and_refused_keys_fill_no_disk_and_displace_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "REFUSED_AT_ONCE", 5)
    monkeypatch.setattr(audit, "REFILL_SECONDS", 1e9)
    for _ in range(20):
        assert await site.ask("GET", "/v1/boxes", key="") == 401
        assert await site.ask("DELETE", "/v1/boxes/nosuch") == 404
        assert await site.ask("DELETE", "/v1/boxes/box1", key="") == 401
    for number in range(20):
        assert await site.ask("POST", "/v1/volumes", {"name": f"data-{number}"}) == 201
    lines = await site.lines()
    assert [line.status for line in lines].count(401) == [line.status for line in lines].count(404) == 5
    assert [line.action for line in lines].count("createVolume") == 20
    gaps = {line.key_id: line.target for line in lines if line.action == GAP}
    assert gaps == {"": "35 lines", site.key_id: "15 lines"}


async def test_what_the_memory_cannot_hold_is_in_the_log_and_said_to_be_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "MAX_UNWRITTEN", 3)
    caplog.set_level("INFO", "boxlite_server.audit")
    for number in range(5):
        assert await site.ask("POST", "/v1/volumes", {"name": f"data-{number}"}) == 201
    logged = [json.loads(record.message) for record in caplog.records if record.name == "boxlite_server.audit"]
    assert [line["action"] for line in logged] == ["createVolume"] * 5
    assert await site.lines()
    assert [line.action for line in await site.lines()] == [*["createVolume"] * 3, GAP]
    assert (await site.lines())[-1].target == "2 lines"


async def test_lines_are_kept_as_long_as_the_operator_says(tmp_path: Path) -> None:
    now = time.time()
    core = await Core.open(tmp_path / "c.db", None, Policy(audit_keep=2 * 86400.0))
    old = AuditLine(now - 3 * 86400, "k", "acme", "createBox", "/", 201, "", "")
    await core.store.insert_audit([old, old._replace(at=now - 86400)])
    core.start()
    try:
        async with asyncio.timeout(30):
            while len(left := await core.store.find_audit(AuditFilter(), 10)) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert left == [old._replace(at=now - 86400)]
    finally:
        await core.close()


async def test_what_is_not_written_yet_is_written_at_the_end(tmp_path: Path) -> None:
    site = await Site(tmp_path / "c.db").open()
    site.core.start()
    assert await site.ask("POST", "/v1/volumes", {"name": "data"}) == 201
    await site.core.close()
    again = await Core.open(tmp_path / "c.db", None)
    assert [line.action for line in await again.store.find_audit(AuditFilter(), 10)] == ["createVolume"]
    await again.close()
