"""The edge by itself: what becomes of requests that the server's end cuts off."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from boxlite_server import rpc, specs
from boxlite_server.coordinator.http.edge import Edge
from boxlite_server.coordinator.http.operations import Operations
from boxlite_server.coordinator.tenants.principal import ANONYMOUS, Principal


class Anybody:
    """Lets everybody in."""

    async def authenticate(self, authorization: str | None, address: str) -> Principal:
        return ANONYMOUS


class Unlimited:
    async def take_request(self, prefix: str) -> rpc.Tenant:
        return rpc.Tenant(prefix)


class Unread:
    """An audit that nobody reads."""

    def note(self, **line: object) -> None:
        pass


async def cut_off(*first: dict[str, Any]) -> list[dict[str, Any]]:
    """What a client gets from an application that sends `first` and then takes too long."""
    sent: list[dict[str, Any]] = []
    waits = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in first:
            await send(message)
        waits.set()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    operations = Operations(specs.openapi())
    edge = Edge(application, application, Anybody(), Unlimited(), Unread(), operations)  # type: ignore[arg-type]
    scope = {"type": "http", "method": "GET", "path": "/v1/boxes", "query_string": b"", "headers": []}
    task = asyncio.create_task(edge(scope, receive, send))
    await waits.wait()
    task.cancel()
    await task
    return sent


def test_an_answer_that_has_not_begun_says_that_the_coordinator_ends() -> None:
    start, body = asyncio.run(cut_off())
    assert start["status"] == 503
    assert dict(start["headers"])[b"x-request-id"]
    error = json.loads(body["body"])["error"]
    assert (error["type"], error["code"]) == ("UpstreamUnavailableError", "upstream_unavailable")
    assert "shutting down" in error["message"]


def test_an_answer_that_has_begun_is_broken_off() -> None:
    begun = {"type": "http.response.start", "status": 200, "headers": []}
    assert [message["type"] for message in asyncio.run(cut_off(begun))] == ["http.response.start"]
