"""Calls asynchronous methods from tests that are synchronous."""

from __future__ import annotations

import asyncio
from typing import Any


class Blocking:
    """Makes an object's asynchronous methods synchronous; each call runs to its end in an event loop of its own."""

    def __init__(self, awaited: Any) -> None:
        self._awaited = awaited

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._awaited, name)
        return lambda *arguments, **fields: asyncio.run(method(*arguments, **fields))
