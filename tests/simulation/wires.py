"""The network between coordinators and workers. Each call travels by itself: what has been sent arrives even
when its sender is gone, unless something is wrong with the way."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc

from boxlite_server import errors, rpc
from boxlite_server.coordinator.store import Worker

from .life import Life

KEEPALIVE = 15.0  # seconds until a connection that says nothing is known to be lost
LATENCY = 0.01


@dataclass
class Fault:
    """What happens to the next call to a worker. Where there is no answer, the caller hears of a lost connection
    `broken_after` so many seconds, or, with None, nothing until its deadline."""

    worker: str
    lose_request: bool = False
    lose_reply: bool = False
    broken_after: float | None = KEEPALIVE
    again_after: float | None = None  # the request arrives twice, the second time so many seconds later
    late: float = 0.0  # the request arrives so many seconds later


class Refused(Exception):
    """The worker's answer is an error."""

    def __init__(self, error: errors.BoxliteError) -> None:
        self.error = error


class Context:
    """The gRPC context that the service sees. The caller never goes away during a call: a call takes no time there."""

    code = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self.code = dict(trailing_metadata)[rpc.CODE_KEY]

    def abort(self, code: grpc.StatusCode, details: str) -> Any:
        raise Refused(errors.from_code(self.code, details))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        pass

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None


class Wires:
    """All connections. `hosts`: the machines, by the worker's id; see `host.Host`."""

    def __init__(self, rng: random.Random) -> None:
        self.hosts: dict[str, Any] = {}
        self.faults: list[Fault] = []
        self._rng = rng
        self._under_way: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()  # belongs to no process

    def latency(self) -> float:
        return LATENCY * self._rng.uniform(0.5, 1.5)

    def spawn(self, travel: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(travel, context=self._context.copy())
        self._under_way.add(task)
        task.add_done_callback(self._arrived)

    def take_fault(self, worker_id: str) -> Fault:
        for fault in self.faults:
            if fault.worker == worker_id:
                self.faults.remove(fault)
                return fault
        return Fault(worker_id)

    async def quiet(self) -> None:
        """Wait until nothing is on its way any more."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.result()


class SimLink:
    """A coordinator's connection to one life of one worker; see `boxlite_server.coordinator.fleet.link.Link`."""

    def __init__(self, wires: Wires, life: Life, worker: Worker) -> None:
        self._wires = wires
        self._life = life
        self._worker = worker
        self._replies: set[asyncio.Future[Any]] = set()

    async def unary(self, method: str, request: Any, *, timeout: float | None) -> Any:
        self._life.step(f"call {method}", False)
        copy = type(request)()
        copy.CopyFrom(request)
        answer = await self._ask(lambda process: process.call(method, copy), timeout)
        self._life.step(f"call {method}", True)
        return answer

    async def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        self._life.step(f"call {method}", False)
        answers = await self._ask(lambda process: process.call_all(method, request), None)
        self._life.step(f"call {method}", True)
        for answer in answers:
            yield answer

    async def send(self, method: str, header: Any, requests: AsyncIterator[Any]) -> Any:
        """Deliver the header and all requests at once: what a real worker refuses early is refused late here."""
        parts = [header]
        async for request in requests:
            parts.append(request)
        self._life.step(f"call {method}", False)
        answer = await self._ask(lambda process: process.call(method, iter(parts)), None)
        self._life.step(f"call {method}", True)
        return answer

    async def close(self) -> None:
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(self._unreachable("the connection was closed"))

    async def _ask(self, question: Callable[[Any], Any], timeout: float | None) -> Any:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies.add(reply)
        self._wires.spawn(self._carry(question, reply))
        try:
            async with asyncio.timeout(timeout):
                return await reply
        except TimeoutError:
            raise errors.TimedOutError(f"worker {self._worker.name} did not answer in time; try again") from None
        finally:
            self._replies.discard(reply)

    async def _carry(self, question: Callable[[Any], Any], reply: asyncio.Future[Any]) -> None:
        """Carry the question to the worker and the answer back."""
        host = self._wires.hosts[self._worker.id]
        fault = self._wires.take_fault(host.id)
        if fault.late:
            self._wires.spawn(self._break_off(reply, fault))
        await asyncio.sleep(fault.late or self._wires.latency())
        if host.process is None:
            self._fail(reply, "connection refused")
        elif fault.lose_request or host.is_cut:
            await self._break_off(reply, fault)
        else:
            await self._deliver(question, host.process, reply, fault)

    async def _deliver(self, question: Callable[[Any], Any], process: Any, reply: Any, fault: Fault) -> None:
        host = process.host
        if not host.awake.is_set():
            self._wires.spawn(self._break_off(reply, fault))
            await host.awake.wait()
            if host.process is not process:
                return
        await asyncio.sleep(host.slowness)
        if host.process is not process:
            self._fail(reply, "connection reset")
            return
        answer = self._answer(question, process)
        if fault.again_after is not None:
            self._wires.spawn(self._repeat(question, host, fault.again_after))
        await asyncio.sleep(self._wires.latency())
        if host.process is not process:
            self._fail(reply, "connection reset")
        elif fault.lose_reply or host.is_cut or not host.awake.is_set():
            await self._break_off(reply, fault)
        elif not reply.done():
            if isinstance(answer, errors.BoxliteError):
                reply.set_exception(answer)
            else:
                reply.set_result(answer)

    async def _repeat(self, question: Callable[[Any], Any], host: Any, delay: float) -> None:
        """Deliver the question again, to whichever process serves at that address then."""
        await asyncio.sleep(delay)
        await host.awake.wait()
        if host.process is not None:
            self._answer(question, host.process)

    def _answer(self, question: Callable[[Any], Any], process: Any) -> Any:
        if not process.admits(self._worker.epoch):
            return errors.UpstreamUnavailableError("the call was addressed to a former life of this worker")
        try:
            return question(process)
        except Refused as exc:
            return exc.error

    async def _break_off(self, reply: asyncio.Future[Any], fault: Fault) -> None:
        if fault.broken_after is not None:
            await asyncio.sleep(fault.broken_after)
            self._fail(reply, "connection lost")

    def _fail(self, reply: asyncio.Future[Any], why: str) -> None:
        if not reply.done():
            reply.set_exception(self._unreachable(why))

    def _unreachable(self, why: str) -> errors.BoxliteError:
        return errors.UnreachableError(f"worker {self._worker.name} cannot be reached: {why}")
