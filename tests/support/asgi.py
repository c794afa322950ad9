"""HTTP requests to an ASGI application, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

Reply = tuple[int, dict[str, str], bytes]  # status, headers, body


async def ask(
    app: Any,
    method: str,
    path: str,
    *body: bytes,
    query: str = "",
    headers: dict[str, str] | None = None,
    gone: asyncio.Event | None = None,
    **scope: Any,
) -> Reply:
    """Send one request, whose body comes in these parts; the whole reply. `scope` is added to the ASGI scope. The
    client stays until it has the reply, or until `gone` is set; it leaves a stream that never ends at once."""
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    pending = iter([*parts, {"type": "http.request", "body": b"", "more_body": False}])

    left = gone or asyncio.Event()

    async def receive() -> Any:
        if message := next(pending, None):
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and (path.endswith("/events") or not message.get("more_body")):
            left.set()

    whole_scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        **scope,
    }
    await app(whole_scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])


async def handshake(app: Any, path: str, *, headers: dict[str, str] | None = None, **scope: Any) -> int:
    """The status with which an ASGI application answers a WebSocket handshake; 101 where it accepts."""
    pending = iter([{"type": "websocket.connect"}])

    async def receive() -> Any:
        return next(pending, {"type": "websocket.disconnect", "code": 1006})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    whole_scope = {
        "type": "websocket",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "ws",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        **scope,
    }
    await app(whole_scope, receive, send)
    return 101 if sent[0]["type"] == "websocket.accept" else int(sent[0]["status"])
