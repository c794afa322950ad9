"""Clients that go away before their WebSocket is answered: that is no fault of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.http.attach.protocol import PEER
from boxlite_server.coordinator.http.attach.routes import Attach, Attachment
from boxlite_server.coordinator.http.attach.session import AttachOptions
from boxlite_server.coordinator.http.errors import REQUEST_ID


class Executions:
    @asynccontextmanager
    async def attachment(self, execution_id: str) -> AsyncIterator[Any]:
        yield SimpleNamespace(lost=asyncio.Event())

    def take_brief(self, box: Any, execution_id: str) -> None:
        return None

    @asynccontextmanager
    async def resumed(self, box: Any, execution_id: str) -> AsyncIterator[Any]:
        yield pb.Execution(execution_id=execution_id), None


@pytest.mark.parametrize("refused", [False, True])
def test_a_client_that_goes_away_before_its_answer_is_no_fault(
    refused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = SimpleNamespace(boxes=None, executions=Executions())
    attach, sent = Attach(core), []

    async def find(scope: Any) -> Attachment:
        if refused:
            raise errors.NotFoundError("box not found: x")
        box: Any = SimpleNamespace(id="b")
        return Attachment(box, "e", AttachOptions(), named=True)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])
        raise ClientDisconnected

    monkeypatch.setattr(attach, "_find", find)
    scope = {
        "type": "websocket",
        "path": "/v1/default/boxes/b/attach",
        "query_string": b"",
        "headers": [],
        "extensions": {"websocket.http.response": {}},
        "state": {PEER: None},
        REQUEST_ID: "req",
    }
    asyncio.run(attach(scope, receive, send))
    assert sent == ["websocket.http.response.start" if refused else "websocket.accept"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
