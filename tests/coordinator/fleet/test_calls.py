"""The typed calls to workers, held against worker.proto."""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any

import pytest

from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.fleet import calls
from boxlite_server.coordinator.fleet.calls import Calls
from boxlite_server.coordinator.fleet.registry import Fleet
from boxlite_server.coordinator.store import Worker

RPCS = {rpc.name: rpc for rpc in pb.DESCRIPTOR.services_by_name["WorkerService"].methods}
ROW = Worker("w", "w", "http://h:1", "s", "active", "e", {}, 1, 1, None, "", "", 0, 0)


class Recorder:
    """A link that notes what it is asked for, and how."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def unary(self, method: str, request: Any, *, timeout: float) -> None:
        self.asked.append(("unary", method, type(request).__name__))

    async def stream(self, method: str, request: Any) -> AsyncGenerator[None, None]:
        self.asked.append(("stream", method, type(request).__name__))
        return
        yield

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> None:
        self.asked.append(("send", method, type(header).__name__))

    async def close(self) -> None:
        pass


async def nothing() -> AsyncIterator[Any]:
    return
    yield


@pytest.mark.parametrize("name", RPCS)
def test_each_rpc_has_a_method_of_its_types(name: str) -> None:
    rpc = RPCS[name]
    method = getattr(Calls, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    hints = typing.get_type_hints(method, {**vars(calls), "Awaitable": Awaitable, "AsyncGenerator": AsyncGenerator})
    assert typing.get_args(hints["return"])[0].__name__ == rpc.output_type.name

    async def call() -> list[tuple[str, str, str]]:
        recorder = Recorder()
        rpcs = Calls(Fleet(None, lambda: 0.0), connect=lambda row: recorder)  # type: ignore[arg-type]
        arguments = [hints[each]() for each in list(inspect.signature(method).parameters)[2:3]]
        if rpc.client_streaming:
            await method(rpcs, ROW, *arguments, nothing())
        elif rpc.server_streaming:
            assert [each async for each in method(rpcs, ROW, *arguments)] == []
        else:
            await method(rpcs, ROW, *arguments)
        return recorder.asked

    kind = "send" if rpc.client_streaming else "stream" if rpc.server_streaming else "unary"
    assert asyncio.run(call()) == [(kind, name, rpc.input_type.name)]
