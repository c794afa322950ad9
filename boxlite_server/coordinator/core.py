"""The coordinator's parts, put together once and handed to every handler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import ids
from .auth import Authenticator
from .control.lifetimes import Lifetimes
from .control.reconcile import ORPHAN_GRACE_SECONDS, Reconciler
from .domain.archives import Archives
from .domain.boxes import Boxes
from .domain.deadlines import Schedule
from .domain.executions import RECONNECT_GRACE, Executions
from .domain.files import Files
from .domain.images import Images
from .domain.snapshots import Snapshots
from .domain.volumes import Volumes
from .fleet.link import Connect, GrpcLink
from .fleet.registry import Fleet
from .leases import Leases
from .limits import Policy
from .store import Store


@dataclass
class Core:
    """One coordinator without its HTTP surface."""

    store: Store
    leases: Leases
    fleet: Fleet
    boxes: Boxes
    images: Images
    volumes: Volumes
    executions: Executions
    files: Files
    schedule: Schedule
    lifetimes: Lifetimes
    snapshots: Snapshots
    archives: Archives
    reconciler: Reconciler
    policy: Policy
    clock: Callable[[], float]
    authenticator: Authenticator
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # set at shutdown: long answers end

    @classmethod
    async def open(
        cls,
        database: Path | str,
        api_key: str | None,
        policy: Policy = Policy(),  # noqa: B008
        clock: Callable[[], float] = time.time,
        *,
        reconnect_grace: float = RECONNECT_GRACE,
        orphan_grace: float = ORPHAN_GRACE_SECONDS,
        connect: Connect = GrpcLink,
    ) -> Core:
        """Open the database and build the parts; raises DatabaseError."""
        store = await Store.open(database)
        return cls.over(
            store,
            api_key,
            policy,
            clock,
            reconnect_grace=reconnect_grace,
            orphan_grace=orphan_grace,
            connect=connect,
        )

    @classmethod
    def over(
        cls,
        store: Store,
        api_key: str | None,
        policy: Policy = Policy(),  # noqa: B008
        clock: Callable[[], float] = time.time,
        *,
        reconnect_grace: float = RECONNECT_GRACE,
        orphan_grace: float = ORPHAN_GRACE_SECONDS,
        connect: Connect = GrpcLink,
    ) -> Core:
        """Build the parts over an open database."""
        leases = Leases(store, clock, holder=ids.new_id())
        fleet = Fleet(store, clock, connect)
        volumes = Volumes(store, fleet, leases, clock)
        schedule = Schedule(store, leases, clock)
        boxes = Boxes(store, fleet, volumes, schedule, leases, policy, clock)
        snapshots = Snapshots(store, fleet, boxes, clock)
        return cls(
            store=store,
            leases=leases,
            fleet=fleet,
            boxes=boxes,
            images=Images(store, fleet),
            volumes=volumes,
            executions=Executions(store, boxes, fleet, schedule, leases, reconnect_grace),
            files=Files(boxes, fleet, schedule),
            schedule=schedule,
            lifetimes=Lifetimes(store, schedule, boxes, fleet, clock),
            reconciler=Reconciler(store, fleet, boxes, snapshots, volumes, clock, orphan_grace=orphan_grace),
            snapshots=snapshots,
            archives=Archives(boxes, fleet, policy, clock),
            policy=policy,
            clock=clock,
            authenticator=Authenticator(api_key, clock),
        )

    def start(self) -> None:
        """Begin what goes on by itself; needs the running event loop."""
        self.leases.start()
        self.lifetimes.start()
        self.reconciler.start()

    async def close(self) -> None:
        await self.lifetimes.close()
        await self.reconciler.close()
        await self.leases.close()
        await self.fleet.close()
        await self.store.close()
