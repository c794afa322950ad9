"""One run: what clients ask for and what befalls the cluster, step by step, and what must hold all the while."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from support.fake_runtime import IMAGE

from boxlite_server import errors
from boxlite_server.coordinator.core import Core
from boxlite_server.coordinator.domain.warm import pool_of

from .cluster import Cluster, Coordinator
from .host import Host
from .life import Dead
from .model import ABSENT, CONFIGURED, FAILED, RUNNING, STOPPED, Attempt, Claim
from .truth import Truth
from .wires import Fault

PREFIX = "default"
LONGEST_OPERATION = 1500.0  # virtual seconds: others may be in front, and every worker is waited for in turn
MANY_RESTARTS = 6  # of an engine, after which a box that it always ends may be given up
LONGEST_REST = 200.0  # virtual seconds from the end of all trouble until nothing changes any more

# After these nothing was done; after all others nobody knows.
_REFUSALS = (
    errors.InvalidArgumentError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.InvalidStateError,
    errors.ResourceExhaustedError,
)

Step = tuple[Any, ...]  # the name of a method of `Story` and its arguments


class Story:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._claims: list[Claim] = []
        self._numbers = itertools.count()
        self._operations: dict[asyncio.Task[None], float] = {}  # since when
        self._recoveries: list[asyncio.Task[None]] = []
        self._restarts: Counter[Host] = Counter()  # of engines
        self._truth = Truth(cluster)

    async def tell(self, steps: Sequence[Step]) -> None:
        try:
            for name, *arguments in steps:
                await getattr(self, name)(*arguments)
                self._see(self._never_right())
            await self._heal()
        finally:
            self._truth.close()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # ---- what clients do ------------------------------------------------------------------------------

    async def keep_warm(self, boxes: int, memory_mib: int) -> None:
        """Have the fleet keep so many boxes of one cpu ready, which most creations can claim."""

        async def operation(core: Core) -> None:
            async with core.store.transaction() as tx:
                await tx.put_warm_pools([pool_of(IMAGE, boxes, 1, memory_mib)])

        for coordinator in self._cluster.coordinators[:1]:
            with contextlib.suppress(Dead):
                await coordinator.run(operation)

    async def create(self, name: int | None, cpus: int, memory_mib: int, start: bool = False) -> None:
        number = len(self._claims)
        claim = Claim(number, None if name is None else f"name-{name}", cpus, memory_mib, is_started=start)
        self._claims.append(claim)
        self._create(claim)

    async def retry(self) -> None:
        """Repeat the creations that were never answered, under the same Idempotency-Key."""
        for claim in self._claims:
            if claim.is_in_doubt:
                self._create(claim)

    def _create(self, claim: Claim) -> None:
        key = f"client/{claim.number}"
        request = {
            "image": IMAGE,
            "name": claim.name,
            "cpus": claim.cpus,
            "memory_mib": claim.memory_mib,
            "labels": {"claim": str(claim.number)},
            "env": {"CLAIM": str(claim.number)},
            "start": claim.is_started,
        }

        async def operation(core: Core) -> Any:
            async with core.leases.hold(f"key/{key}", "this key"):
                box = await core.creation.create(PREFIX, request, request_key=key)
                return await core.boxes.start(PREFIX, box.id) if _has_to_start(claim, box) else box

        self._make(claim, operation)

    async def clone(self, which: int) -> None:
        if source := self._pick(which):
            number = len(self._claims)
            claim = Claim(number, f"claim-{number}", source.cpus, source.memory_mib)
            self._claims.append(claim)
            self._make(claim, lambda core: core.snapshots.clone(PREFIX, str(source.id), claim.name))

    async def start(self, which: int) -> None:
        self._operate(which, RUNNING, lambda core, box: core.boxes.start(PREFIX, box))

    async def stop(self, which: int) -> None:
        self._operate(which, STOPPED, lambda core, box: core.boxes.stop(PREFIX, box, 5))

    async def execute(self, which: int, command: str) -> None:
        async def operation(core: Core, box: str) -> None:
            await core.executions.start(PREFIX, box, {"command": command})

        self._operate(which, RUNNING, operation)

    async def restore(self, which: int, number: int) -> None:
        claim = self._pick(which)
        if claim and claim.snapshots:
            name = claim.snapshots[number % len(claim.snapshots)]
            self._operate(which, CONFIGURED, lambda core, box: core.snapshots.restore(PREFIX, box, name))

    async def remove(self, which: int, force: bool) -> None:
        claim = self._pick(which)
        if claim is None:
            return
        homes = [row.worker_id for row in self._truth.rows() if row.id == claim.id]

        def removed(attempt: Attempt, _: Any) -> None:
            attempt.gone()
            if not force:  # so the worker itself has reported it
                claim.buried_at = homes

        self._begin(
            claim.begin(ABSENT),
            lambda core: core.boxes.remove(PREFIX, str(claim.id), force=force),
            removed,
            lambda attempt: attempt.unknown(FAILED),
        )

    async def snapshot(self, which: int) -> None:
        if claim := self._pick(which):
            name = f"snapshot-{next(self._numbers)}"

            def kept(attempt: Attempt, _: Any) -> None:
                claim.snapshots.append(name)
                attempt.refused()  # the box is as it was

            self._begin(
                claim.begin(CONFIGURED),
                lambda core: core.snapshots.create(PREFIX, str(claim.id), name),
                kept,
                lambda attempt: attempt.refused(),
            )

    def _make(self, claim: Claim, operation: Callable[[Core], Any]) -> None:
        def made(attempt: Attempt, box: Any) -> None:
            claim.id = box.id
            attempt.succeeded(box.status)

        def unknown(attempt: Attempt) -> None:
            claim.is_in_doubt = claim.id is None
            attempt.unknown()

        claim.is_in_doubt = False
        attempt = claim.begin(CONFIGURED)
        if claim.is_started:
            claim.possible.add(RUNNING)
        self._begin(attempt, operation, made, unknown)

    def _operate(self, which: int, target: str, operation: Callable[[Core, str], Any]) -> None:
        if claim := self._pick(which):
            self._begin(
                claim.begin(target),
                lambda core: operation(core, str(claim.id)),
                lambda attempt, box: attempt.succeeded(box.status if box else target),
                lambda attempt: attempt.unknown(),
            )

    def _pick(self, which: int) -> Claim | None:
        """One of the boxes that clients know of and have not removed, the latest for 0."""
        known = [claim for claim in self._claims if claim.id and claim.possible != {ABSENT}]
        return known[-1 - which % len(known)] if known else None

    def _begin(
        self,
        attempt: Attempt,
        operation: Callable[[Core], Any],
        succeeded: Callable[[Attempt, Any], None],
        unknown: Callable[[Attempt], None],
    ) -> None:
        async def act(coordinator: Coordinator) -> None:
            try:
                answer = await coordinator.run(operation)
            except _REFUSALS:
                attempt.refused()
            except (errors.BoxliteError, Dead):
                unknown(attempt)
            else:
                succeeded(attempt, answer)

        if not self._cluster.coordinators:
            attempt.refused()
            return
        coordinator = self._cluster.rng.choice(self._cluster.coordinators)
        task = asyncio.get_running_loop().create_task(act(coordinator))
        self._operations[task] = self._cluster.now()

    # ---- what befalls the cluster ---------------------------------------------------------------------

    async def kill_worker(self, which: int, seconds: float) -> None:
        host = self._host(which)
        host.kill()
        self._later(seconds, host.boot)

    async def freeze(self, which: int, seconds: float) -> None:
        """Send the worker's process SIGSTOP, and SIGCONT later."""
        host = self._host(which)
        host.awake.clear()
        self._later(seconds, host.awake.set)

    async def cut(self, which: int, seconds: float) -> None:
        """Cut the worker off: nothing gets through to it or from it."""
        host = self._host(which)
        host.is_cut = True
        self._later(seconds, functools.partial(setattr, host, "is_cut", False))

    async def slow_down(self, which: int, seconds: float) -> None:
        self._host(which).slowness = seconds

    async def restart_engine(self, which: int) -> None:
        """What ran is started again, unless that was in vain many times, and what was at rest stays so."""
        host = self._host(which)
        self._restarts[host] += 1
        for claim in self._claims:
            claim.befalls({RUNNING: {RUNNING, FAILED}} if self._restarts[host] > MANY_RESTARTS else {})
        host.runtime.restart()

    async def lose_container(self, which: int) -> None:
        if claim := self._pick(which):
            for host in self._cluster.hosts:
                if claim.id in host.containers():
                    claim.befalls({state: {FAILED, state} for state in (CONFIGURED, RUNNING, STOPPED)})
                    host.runtime.lose(str(claim.id))

    async def lose_request(self, which: int, broken_after: float | None) -> None:
        self._fault(which, lose_request=True, broken_after=broken_after)

    async def lose_reply(self, which: int, broken_after: float | None) -> None:
        self._fault(which, lose_reply=True, broken_after=broken_after)

    async def repeat(self, which: int, after: float) -> None:
        self._fault(which, again_after=after)

    async def delay(self, which: int, seconds: float, broken_after: float | None) -> None:
        self._fault(which, late=seconds, broken_after=broken_after)

    async def drain(self, which: int, seconds: float) -> None:
        await self._set_status(which, "draining")
        self._later(seconds, functools.partial(self._set_status, which, "active"))

    async def kill_coordinator(self, which: int, seconds: float) -> None:
        if living := self._cluster.coordinators:
            living[which % len(living)].life.kill()
            self._later(seconds, self._start_coordinator)

    async def _start_coordinator(self) -> None:
        await self._cluster.start_coordinator()

    def _later(self, seconds: float, act: Callable[[], Any]) -> None:
        async def wait_and_act() -> None:
            await asyncio.sleep(seconds)
            if (more := act()) is not None:
                await more

        self._recoveries.append(asyncio.get_running_loop().create_task(wait_and_act()))

    def _host(self, which: int) -> Host:
        return self._cluster.hosts[which % len(self._cluster.hosts)]

    def _fault(self, which: int, **kind: Any) -> None:
        self._cluster.wires.faults.append(Fault(self._host(which).id, **kind))

    async def _set_status(self, which: int, status: str) -> None:
        for coordinator in self._cluster.coordinators[:1]:
            with contextlib.suppress(Dead):
                await coordinator.run(lambda core: core.fleet.set_status(self._host(which).id, status))

    # ---- what must hold -------------------------------------------------------------------------------

    async def _heal(self) -> None:
        """All trouble ends; after a while all must be well."""
        self._cluster.wires.faults.clear()
        for host in self._cluster.hosts:
            host.slowness = 0.0
        for recovery in self._recoveries:
            await recovery
        while unfinished := [since for task, since in self._operations.items() if not task.done()]:
            await asyncio.sleep(5)
            assert self._cluster.now() - min(unfinished) < LONGEST_OPERATION, "an operation does not end"
            self._see(self._never_right())
        for task in self._operations:
            task.result()
        await self._cluster.wires.quiet()
        for _ in range(int(LONGEST_REST / 5)):
            self._see(self._never_right())
            if not (wrong := list(self._not_yet_right())):
                return
            await asyncio.sleep(5)
        self._see(wrong)

    def _see(self, wrong: Iterator[str] | list[str]) -> None:
        if found := list(wrong):
            raise AssertionError("\n".join(found))

    def _never_right(self) -> Iterator[str]:
        yield from self._truth.never_right()
        rows = self._truth.rows()
        for number, count in Counter(row.claim for row in rows).items():
            if count > 1:
                yield f"box {number} was made {count} times"
        statuses = {row.claim: row.status for row in rows}
        for claim in self._claims:
            status = statuses.get(claim.number, ABSENT)
            if ABSENT not in claim.possible and status in (ABSENT, "removing"):
                yield f"box {claim.number} is lost: it is {status}, and may be {claim.possible}"
            if claim.possible == {ABSENT} and status != ABSENT:
                yield f"box {claim.number} is gone, and is {status} again"
            for host_id in claim.buried_at:
                if claim.id in self._cluster.wires.hosts[host_id].containers():
                    yield f"box {claim.number} was removed, and has a container at {host_id} again"
            if status == FAILED and FAILED not in claim.possible:
                yield f"box {claim.number} is shown as failed, and may be {claim.possible}"

    def _not_yet_right(self) -> Iterator[str]:
        yield from self._truth.not_yet_right()
        rows = {row.claim: row for row in self._truth.rows()}
        for claim in self._claims:
            row = rows.get(claim.number)
            status = row.status if row else ABSENT
            if status not in claim.possible:
                yield f"box {claim.number} is {status}, and may be {claim.possible}"
            if row is not None:
                kept = self._truth.snapshots(row.id)
                yield from (f"box {claim.number} has lost {name}" for name in claim.snapshots if name not in kept)


def _has_to_start(claim: Claim, box: Any) -> bool:
    """Whether the request asks for a start that a broken-off attempt has left undone."""
    return claim.is_started and box.status == CONFIGURED
