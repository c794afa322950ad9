"""Requests with an Idempotency-Key: carried out once, answered as often as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Reply, ask
from support.blocking import Blocking
from support.cluster import Cluster
from support.coordinator_site import CoordinatorSite

from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.http.errors import PRINCIPAL, REQUEST_ID
from boxlite_server.coordinator.http.idempotency import MAX_BODY_BYTES, Idempotency
from boxlite_server.coordinator.http.operations import OPERATION
from boxlite_server.coordinator.limits import REQUEST_SECONDS
from boxlite_server.coordinator.tenants.principal import Principal


class Application:
    """An application behind the middleware: `answer` gets the chunks of a body, and gives status and body."""

    def __init__(self, core: Core) -> None:
        self.runs = 0
        self.answer: Callable[[AsyncIterator[bytes]], Awaitable[tuple[int, list[bytes]]]] = read_all
        self._middleware = Idempotency(self._serve, core.store, core.leases, core.clock)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1

        async def chunks() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                yield message.get("body", b"")

        status, body = await self.answer(chunks())
        headers = [(b"content-type", b"text/plain"), (b"location", b"/here")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def send(
        self,
        *body: bytes,
        key: str = "k",
        method: str = "POST",
        path: str = "/v1/default/boxes",
        query: str = "",
        sub: str = "me",
        request_id: str = "req_1",
        operation: str = "createBox",
    ) -> Reply:
        about = {PRINCIPAL: Principal(sub, frozenset()), REQUEST_ID: request_id, OPERATION: operation}
        return await ask(self._middleware, method, path, *body, query=query, headers={"idempotency-key": key}, **about)


async def read_all(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
    return 201, [b"got ", *[chunk async for chunk in body]]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CoordinatorSite]:
    site = CoordinatorSite(tmp_path / "c.db")
    yield asyncio.run(site.open())
    asyncio.run(site.close())


@pytest.fixture
def app(site: CoordinatorSite) -> Application:
    return Application(site.core)


def test_a_repetition_gets_the_first_answer(app: Application) -> None:
    async def story() -> None:
        status, headers, body = await app.send(b"ab", b"cd")
        assert (status, body) == (201, b"got abcd")
        again = await app.send(b"a", b"bcd", request_id="req_2")  # the same body in other chunks
        assert again[0::2] == (201, b"got abcd")
        assert again[1] == {**headers, "x-request-id": "req_1", "idempotency-replayed": "true"}
        assert again[1]["location"] == "/here"
        assert app.runs == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "other",
    [
        {"body": (b"abc",)},
        {"body": (b"abcde",)},
        {"body": (b"abxd",)},
        {"body": ()},
        {"path": "/v1/default/boxes/web/start"},
        {"method": "PUT"},
        {"query": "force=true"},
    ],
)
def test_another_request_is_refused(app: Application, other: dict[str, Any]) -> None:
    async def story() -> None:
        await app.send(b"abcd")
        body = other.pop("body", (b"abcd",))
        status, _, answer = await app.send(*body, **other)
        error = json.loads(answer)["error"]
        assert (status, error["type"], error["code"]) == (422, "InvalidArgumentError", "invalid_argument")
        assert (await app.send(b"abcd"))[0] == 201
        assert app.runs == 1

    asyncio.run(story())


@pytest.mark.parametrize("other", [{"key": "another"}, {"sub": "you"}, {"path": "/v1/acme/boxes"}])
def test_keys_are_ones_own_in_each_prefix(app: Application, other: dict[str, Any]) -> None:
    async def story() -> None:
        await app.send(b"a")
        assert (await app.send(b"b", **other))[0::2] == (201, b"got b")
        assert app.runs == 2

    asyncio.run(story())


def test_what_was_not_read_is_not_compared(app: Application) -> None:
    """An answer that was given before the whole body was read counts for the part that was read."""

    async def refuse(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
        assert await anext(body) == b"head"
        return 404, [b"no such box"]

    async def story() -> None:
        app.answer = refuse
        await app.send(b"head", b"tail")
        assert (await app.send(b"he", b"ad and another tail"))[0::2] == (404, b"no such box")
        assert (await app.send(b"hex"))[0] == 422
        assert app.runs == 1

    asyncio.run(story())


def test_of_concurrent_ones_one_is_carried_out(app: Application) -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def slow(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
            await go.wait()
            return await read_all(body)

        app.answer = slow
        tasks = [asyncio.create_task(app.send(b"a")) for _ in range(5)]
        tasks.append(asyncio.create_task(app.send(b"b")))
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        go.set()
        replies = await asyncio.gather(*tasks)
        assert [reply[0::2] for reply in replies[:5]] == [(201, b"got a")] * 5
        assert replies[5][0] == 422
        assert app.runs == 1

    asyncio.run(story())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_answer_that_says_try_again_is_not_kept(app: Application, status: int) -> None:
    async def fail(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
        return status, [b"sorry"]

    async def story() -> None:
        app.answer = fail
        assert (await app.send(b"a"))[0] == status
        app.answer = read_all
        assert (await app.send(b"a"))[0] == 201
        assert app.runs == 2

    asyncio.run(story())


def test_one_that_breaks_off_lets_the_next_one_in(app: Application) -> None:
    async def story() -> None:
        begun = asyncio.Event()

        async def hang(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        app.answer = hang
        first = asyncio.create_task(app.send(b"a"))
        await begun.wait()
        second = asyncio.create_task(app.send(b"a"))
        await asyncio.sleep(0)
        app.answer = read_all
        first.cancel()
        assert (await second)[0] == 201
        assert app.runs == 2

    asyncio.run(story())


def test_a_large_answer_is_a_stream_and_not_kept(app: Application) -> None:
    async def flood(body: AsyncIterator[bytes]) -> tuple[int, list[bytes]]:
        return 200, [bytes(MAX_BODY_BYTES), b"x"]

    async def story() -> None:
        app.answer = flood
        assert len((await app.send())[2]) == MAX_BODY_BYTES + 1
        assert len((await app.send())[2]) == MAX_BODY_BYTES + 1
        assert app.runs == 2

    asyncio.run(story())


def test_keys_expire(site: CoordinatorSite, app: Application) -> None:
    async def story() -> None:
        await app.send(b"a")
        site.clock.now += REQUEST_SECONDS - 1
        await app.send(b"a")
        assert app.runs == 1
        site.clock.now += 1
        assert (await app.send(b"b"))[0] == 201
        assert app.runs == 2

    asyncio.run(story())


def test_expired_answers_are_purged(site: CoordinatorSite, app: Application) -> None:
    store, now = Blocking(site.core.store), site.clock.now
    asyncio.run(app.send(b"a"))
    store.purge_answers(now + REQUEST_SECONDS - 1)
    assert store.find_answer("me default", "k", now)
    store.purge_answers(now + REQUEST_SECONDS)
    assert store.find_answer("me default", "k", now) is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reading_needs_no_key(app: Application, method: str) -> None:
    asyncio.run(app.send(method=method))
    asyncio.run(app.send(method=method))
    assert app.runs == 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"key": ""}, "invalid_argument"),
        ({"key": "k" * 256}, "invalid_argument"),
        ({"path": "/v1/default/boxes/web/export", "operation": "exportBox"}, "unsupported"),
        ({"path": "/v1/default/tickets", "operation": "createTicket"}, "unsupported"),  # a ticket is kept nowhere
    ],
)
def test_keys_that_are_none(app: Application, fields: dict[str, str], code: str) -> None:
    status, _, body = asyncio.run(app.send(**fields))
    assert (status, json.loads(body)["error"]["code"]) == (400, code)
    assert app.runs == 0


# ---- Over HTTP --------------------------------------------------------------------------------------------

WORKER = {
    "id": "W0rk3r000001",
    "name": "paper",
    "url": "http://127.0.0.1:9",
    "secret": "0uVbUoJYQ1x3hHn0J3mZ8Fv5bq2mYk7T9wS4cR6dEfA",
    "epoch": "Ep0ch0000001",
    "capacity": {"cpus": 2, "memory_mib": 24000, "max_boxes": None},
    "boxes": [],
}


def test_over_http_and_a_restart(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, docker_host="unix:///nowhere")
    coordinator = cluster.start_coordinator()
    path = f"/v1/admin/workers/{WORKER['id']}"
    assert cluster.http("POST", "/v1/admin/workers", WORKER)[0] == 200
    key = {"Idempotency-Key": "remove"}
    first = cluster.http("DELETE", path, headers=key)
    assert first[0] == 204
    assert cluster.http("POST", "/v1/admin/workers", WORKER)[0] == 200
    coordinator.kill()
    coordinator.start()
    again = cluster.http("DELETE", path, headers=key)
    assert again[0] == 204
    assert again[1]["x-request-id"] == first[1]["x-request-id"]
    assert cluster.http("GET", path)[0] == 200  # the removal is not carried out a second time
    status, _, body = cluster.http("PATCH", f"{path}/status", {"status": "draining"}, headers=key)
    assert (status, body["error"]["type"]) == (422, "InvalidArgumentError")
    missing = {"Idempotency-Key": "missing"}
    status, headers, body = cluster.http("POST", "/v1/boxes/nosuch/start", headers=missing)
    assert (status, headers["x-request-id"]) == (404, body["error"]["request_id"])
    assert cluster.http("POST", "/v1/boxes/nosuch/start", headers=missing)[2] == body
    # Under the other path its errors would have another form.
    assert cluster.http("POST", "/v1/default/boxes/nosuch/start", headers=missing)[0] == 422
    form = {"Content-Type": "application/x-www-form-urlencoded", **missing}
    status, _, body = cluster.http("POST", "/v1/oauth/tokens", b"grant_type=client_credentials", headers=form)
    assert (status, body["error"]["code"]) == (400, "unsupported")
    assert cluster.http("GET", "/v1/config")[2]["capabilities"]["idempotency_key_lifetime"] == "PT24H"
    cluster.close()
