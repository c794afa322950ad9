"""Ends what a client is attached to when the key that let it in ends: to the application, the client has gone away."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from .attach.protocol import PEER

CLOSE_POLICY = 1008  # the WebSocket close code for a client that may not go on
REASON = "the API key that this connection was made with has ended"


class Ending:
    """One request under way. `receive` and `send` are for its application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_websocket = scope["type"] == "websocket"
        self._gone = {"type": "websocket.disconnect", "code": CLOSE_POLICY, "reason": REASON}
        if not self._is_websocket:
            self._gone = {"type": "http.disconnect"}
        self._peer: Any = scope.get("state", {}).get(PEER)
        self._receiving: set[asyncio.Task[Any]] = set()
        self._ended = False

    def end(self) -> None:
        """Have the application learn that the client has gone. One that does not look for that runs to its end."""
        self._ended = True
        for task in self._receiving:
            task.cancel()  # `receive` turns the cancellation into the client's leaving
        if self._peer is not None:
            self._peer.end()

    async def receive(self) -> Message:
        if self._ended:
            return self._gone
        task = asyncio.current_task()
        assert task is not None
        self._receiving.add(task)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if self._ended and task.uncancel() == 0:
                return self._gone
            raise
        finally:
            self._receiving.discard(task)

    async def send(self, message: Message) -> None:
        """Send, as ASGI's `send` does. Raises OSError on a WebSocket whose key has ended."""
        if self._ended and self._is_websocket:
            raise OSError(REASON)
        await self._send(message)

    async def close(self) -> None:
        """Close a WebSocket whose key has ended, once its application has left."""
        if self._ended and self._is_websocket:
            with suppress(OSError, RuntimeError):  # it is closed already
                await self._send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": REASON})
