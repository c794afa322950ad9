"""Puts the coordinator's parts together once; every handler gets them as one `Core`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import ids
from .control.lifetimes import Lifetimes
from .control.orphans import ORPHAN_GRACE_SECONDS, Orphans
from .control.pools import Pools
from .control.reconcile import Reconciler
from .control.restarts import Restarts
from .domain.archives import Archives
from .domain.boxes import Boxes
from .domain.counting import Counting
from .domain.creating import Creation
from .domain.deadlines import Schedule
from .domain.executions import RECONNECT_GRACE, Executions
from .domain.files import Files
from .domain.images import Images
from .domain.metrics import Metrics
from .domain.observing import Observer
from .domain.snapshots import Snapshots
from .domain.turns import Turns
from .domain.volumes import Volumes
from .domain.warm import Warm
from .events import Events
from .fleet.calls import Calls
from .fleet.certificates import Certificates
from .fleet.link import Connect
from .fleet.registry import Fleet
from .leases import Leases
from .limits import Policy
from .store import Quotas, Store
from .tenants.audit import Audit
from .tenants.authenticator import Authenticator
from .tenants.keys import Keys
from .tenants.quotas import QuotaRows


@dataclass
class Core:
    """One coordinator without its HTTP side."""

    store: Store
    leases: Leases
    fleet: Fleet
    calls: Calls
    turns: Turns
    observer: Observer
    creation: Creation
    boxes: Boxes
    images: Images
    volumes: Volumes
    executions: Executions
    counting: Counting
    files: Files
    schedule: Schedule
    lifetimes: Lifetimes
    snapshots: Snapshots
    archives: Archives
    metrics: Metrics
    pools: Pools
    reconciler: Reconciler
    policy: Policy
    clock: Callable[[], float]
    authenticator: Authenticator
    quotas: QuotaRows
    certificates: Certificates
    audit: Audit
    events: Events
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # set at shutdown, so that long answers end

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
        certificates: Certificates | None = None,
        connect: Connect | None = None,
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
            certificates=certificates,
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
        certificates: Certificates | None = None,
        connect: Connect | None = None,
    ) -> Core:
        """Build the parts over an open database."""
        certificates = certificates or Certificates()
        fleet, leases = Fleet(store, clock, encrypts=certificates.encrypt), Leases(store, clock, holder=ids.new_id())
        quotas, counting = QuotaRows(store, Quotas(policy.max_boxes_per_prefix)), Counting(store)
        calls, schedule = Calls(fleet, connect or certificates.connect), Schedule(store, leases, clock)
        images, volumes = Images(store, fleet, calls, clock), Volumes(store, fleet, calls, leases, quotas, clock)
        turns = Turns(store, fleet, schedule, leases, quotas, clock)
        observer = Observer(store, fleet, calls, turns, clock)
        events = Events(store)
        warm = Warm(store, fleet, turns, observer, counting)
        creation = Creation(store, fleet, calls, volumes, turns, observer, warm, images, quotas, policy, clock)
        boxes = Boxes(store, fleet, calls, schedule, turns, observer, warm, events, clock)
        snapshots = Snapshots(store, fleet, calls, turns, observer, creation, clock)
        orphans, restarts = Orphans(store, calls, turns, clock, grace=orphan_grace), Restarts(boxes, observer, clock)
        boxes.on_forgotten(orphans.forgotten)
        return cls(
            store=store,
            leases=leases,
            fleet=fleet,
            calls=calls,
            turns=turns,
            observer=observer,
            creation=creation,
            boxes=boxes,
            images=images,
            volumes=volumes,
            executions=Executions(
                calls,
                turns,
                observer,
                boxes,
                schedule,
                leases,
                counting,
                reconnect_grace,
                is_alone=not store.is_shared,
            ),
            counting=counting,
            files=Files(turns, calls, schedule),
            schedule=schedule,
            lifetimes=Lifetimes(store, fleet, calls, schedule, boxes, clock),
            snapshots=snapshots,
            archives=Archives(turns, creation, calls, policy, clock),
            metrics=Metrics(turns, calls),
            pools=Pools(store, fleet, calls, turns, creation, warm, leases, clock),
            reconciler=Reconciler(store, fleet, calls, turns, observer, snapshots, volumes, orphans, restarts, clock),
            policy=policy,
            clock=clock,
            authenticator=Authenticator(store, Keys(store, clock), api_key, clock),
            quotas=quotas,
            certificates=certificates,
            audit=Audit(store, policy.audit_keep, clock),
            events=events,
        )

    def start(self) -> None:
        """Start the parts that act unasked; needs the running event loop."""
        self.leases.start()
        self.lifetimes.start()
        self.reconciler.start()
        self.pools.start()
        self.authenticator.keys.start()
        self.audit.start()
        self.events.start()

    async def close(self) -> None:
        await self.lifetimes.close()
        await self.pools.close()
        await self.reconciler.close()
        await self.leases.close()
        await self.images.close()
        await self.calls.close()
        await self.counting.close()
        await self.authenticator.keys.close()
        await self.audit.close()
        await self.events.close()
        await self.store.close()
