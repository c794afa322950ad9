"""A worker's machine: its engine, and one life after the other of its process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from boxlite_server import errors, ids
from boxlite_server.rpc import EPOCH_KEY, EpochInterceptor
from boxlite_server.worker.files.spool import Spool
from boxlite_server.worker.files.transfer import Files
from boxlite_server.worker.membership.inventory import Inventory, inventory
from boxlite_server.worker.membership.registration import JITTER, Registration
from boxlite_server.worker.service.servicer import WorkerService

from .engine import CPU_LIMIT, CPUS, SimExecutions, SimRuntime
from .wires import Context

TIMEOUT = 10.0  # of the worker's own calls
PAUSE = 2.0  # between attempts to register

Post = Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]]  # host id, call, body; raises BoxliteError


class Host:
    """`is_cut`: nothing gets through to it or from it. `awake`: its process is not stopped by SIGSTOP.
    `slowness`: seconds that each call takes."""

    def __init__(self, number: int, directory: Path, post: Post, rng: random.Random) -> None:
        self.id = f"worker{number:06d}"
        self.name = f"worker-{number}"
        self.identity: Any = SimpleNamespace(id=self.id, name=self.name, secret="secret", cluster_id="cluster")
        self.directory = directory
        self.runtime = SimRuntime(directory, self._changed)
        self.process: Process | None = None
        self.is_cut = False
        self.awake = asyncio.Event()
        self.awake.set()
        self.slowness = 0.0
        self.post = post
        self.rng = rng

    def boot(self) -> None:
        """Start the worker's process, unless it runs."""
        if self.process is None:
            self.process = Process(self)

    def kill(self) -> None:
        """Send SIGKILL to the worker's process. Its boxes go on."""
        if self.process is not None:
            self.process.task.cancel()
            self.process = None

    def told(self, box_id: str) -> dict[str, str]:
        """The environment that the box was made with."""
        return dict(self.runtime.spec_of(box_id).env)

    def size(self, box_id: str) -> tuple[int, int]:
        """The cpus and MiB of memory that the box has."""
        spec = self.runtime.spec_of(box_id)
        return spec.cpus, spec.memory_mib

    def containers(self) -> dict[str, Any]:
        """What is really there, by box id."""
        return {state.box.box_id: state for state in self.runtime.list_boxes()}

    def _changed(self) -> None:
        if self.process is not None:
            self.process.changed.set()


class Process:
    """One life of the worker's process. It says what the real one says, in virtual time."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.epoch = ids.new_id()
        self.changed = asyncio.Event()
        self._calls = EpochInterceptor(self.epoch)
        executions = SimExecutions(host.runtime, host.directory)
        self._service = WorkerService(host.runtime, executions, Files(host.runtime, Spool(host.directory)))
        self._words = Registration(
            client=mock.sentinel.never_called,
            identity=host.identity,
            runtime=host.runtime,
            url=f"http://{host.name}:9100",
            epoch=self.epoch,
            labels={},
            max_boxes=None,
            rng=host.rng,
            cpu_overcommit=CPU_LIMIT / CPUS,
            reserve_memory_mib=0,
            clock=asyncio.get_running_loop().time,
        )
        self._words._stocktaking = _AtOnce(host.runtime)  # type: ignore[assignment]
        self.task = asyncio.create_task(self._report())

    def admits(self, epoch: str) -> bool:
        """Whether this process takes calls that are addressed to that epoch."""
        return self._calls.admits({EPOCH_KEY: epoch.encode()})

    def call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._service, method)(request, Context())
        finally:
            self.host.runtime.settle()

    def call_all(self, method: str, request: Any) -> list[Any]:
        return list(self.call(method, request))

    async def _report(self) -> None:
        """Register and send heartbeats as `Registration.run` does, which waits in real time."""
        while True:
            try:
                held = self._words._take()
                answer = await self._post("register", self._words._introduction(held))
            except errors.BoxliteError:
                await asyncio.sleep(PAUSE * self.host.rng.random())
                continue
            self._words._note_sent(held)
            with contextlib.suppress(errors.NotFoundError, errors.PermissionDeniedError, errors.InvalidStateError):
                await self._send_heartbeats(answer["heartbeat_interval_seconds"])

    async def _send_heartbeats(self, interval: float) -> None:
        while True:
            self.changed.clear()
            held, beat = self._words._beat()
            with contextlib.suppress(errors.UpstreamUnavailableError):
                answer = await self._post("heartbeat", self._words._signed(beat))
                self._words._is_asked = bool(answer.get("send_inventory"))
                if "boxes" in beat:
                    self._words._note_sent(held)
                elif self._words._is_asked:
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval * self.host.rng.uniform(1 - JITTER, 1 + JITTER)):
                    await self.changed.wait()

    async def _post(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        await self.host.awake.wait()
        return await self.host.post(self.host.id, call, body)


class _AtOnce:
    """Replaces the thread in which the real process takes its inventory."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._runtime = runtime

    def take(self, patience: float) -> Inventory:
        return inventory(self._runtime)
