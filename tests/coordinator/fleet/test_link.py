"""The way to a worker over gRPC: what a call carries, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from boxlite_server import errors, rpc
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc
from boxlite_server.coordinator.fleet.link import GrpcLink
from boxlite_server.coordinator.store import Worker

BOX = pb.BoxRef(box_id="AbCdEf123456", generation=1)


class Service(worker_pb2_grpc.WorkerServiceServicer):
    """Records the metadata of calls, and answers once `let` is set: with the error `code` where one is given."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.called = asyncio.Event()
        self.let = asyncio.Event()
        self.code = ""

    async def GetBox(self, request: pb.BoxRef, context: Any) -> pb.Box:
        await self._wait(context)
        return pb.Box(box_id=request.box_id)

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[pb.OutputChunk]:
        yield pb.OutputChunk(data=b"first")
        await self._wait(context)

    async def PutFiles(self, requests: Any, context: Any) -> pb.PutFilesResponse:
        await self._wait(context)
        return pb.PutFilesResponse()

    async def _wait(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.called.set()
        await self.let.wait()
        if self.code:
            context.set_trailing_metadata(((rpc.CODE_KEY, self.code),))
            await context.abort(grpc.StatusCode.UNKNOWN, "so it was")


def with_link(story: Callable[[GrpcLink, Service], Awaitable[None]]) -> None:
    async def run() -> None:
        service, server = Service(), grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        row = Worker(
            "w1", "one", f"http://127.0.0.1:{port}", "secret", "active", "Ep0ch1", {}, 1, 1, None, "", "", 0, 0
        )
        link = GrpcLink(row)
        try:
            await story(link, service)
        finally:
            await link.close()
            await server.stop(None)

    asyncio.run(run())


def test_a_call_says_which_life_of_the_worker_it_means() -> None:
    async def story(link: GrpcLink, service: Service) -> None:
        service.let.set()
        assert (await link.unary("GetBox", BOX, timeout=30)).box_id == BOX.box_id
        assert service.metadata["authorization"] == "Bearer secret"
        assert service.metadata[rpc.EPOCH_KEY] == "Ep0ch1"

    with_link(story)


def test_a_worker_that_does_not_know_its_coordinator_is_not_the_clients_fault() -> None:
    async def story(link: GrpcLink, service: Service) -> None:
        service.let.set()
        service.code = "unauthenticated"
        with pytest.raises(errors.UpstreamUnavailableError, match="worker one refuses its coordinator: so it was"):
            await link.unary("GetBox", BOX, timeout=30)

    with_link(story)


async def _requests(gate: asyncio.Event) -> AsyncIterator[pb.PutFilesRequest]:
    await gate.wait()
    yield pb.PutFilesRequest()


async def _unary(link: GrpcLink) -> None:
    await link.unary("GetBox", BOX, timeout=30)


async def _stream(link: GrpcLink) -> None:
    async for _ in link.stream("ReadLogs", pb.ReadLogsRequest(box=BOX)):
        pass


async def _send(link: GrpcLink) -> None:
    await link.send("PutFiles", pb.PutFilesRequest(), _requests(asyncio.Event()))


@pytest.mark.parametrize("call", [_unary, _stream, _send])
def test_who_waits_for_a_worker_is_told_when_the_link_is_closed(call: Callable[[GrpcLink], Awaitable[None]]) -> None:
    async def story(link: GrpcLink, service: Service) -> None:
        waiting = asyncio.ensure_future(call(link))
        await service.called.wait()
        await link.close()
        with pytest.raises(errors.UnreachableError, match="worker one cannot be reached"):
            await waiting

    with_link(story)


@pytest.mark.parametrize("call", [_unary, _stream, _send])
def test_who_is_cancelled_is_cancelled(call: Callable[[GrpcLink], Awaitable[None]]) -> None:
    async def story(link: GrpcLink, service: Service) -> None:
        waiting = asyncio.ensure_future(call(link))
        await service.called.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with_link(story)
