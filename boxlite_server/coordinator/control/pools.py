"""Keeps the pools of warm boxes: makes boxes that are missing, and removes those that no request should get any more.

A fleet's pool may have its boxes at any worker; what a worker keeps for itself (`--warm`) is at that worker. A warm box
is of no use once its engine was restarted, its image's name means another image, its worker is draining, or no pool
wants it. One coordinator at a time looks after the pools, and makes a few boxes at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from ... import errors
from ..._gen import worker_pb2 as pb
from ..domain.creating import Creation
from ..domain.turns import Turns
from ..domain.warm import Warm, key_of, pool_of, spec_of
from ..fleet.calls import Calls
from ..fleet.registry import Fleet
from ..leases import Leases
from ..loops import Backoff, Loop
from ..states import BoxStatus, WorkerStatus
from ..store import WARM_PREFIX, Store, WarmBox, WarmPool, Worker

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between two looks, if no warm box is claimed
IMAGES_SECONDS = 60.0  # between two looks at what a worker's images are
LONGEST_PAUSE = 300.0  # seconds between two attempts to make a box where that fails; the shortest is LOOK_SECONDS
MAX_MAKING = 2  # boxes that are made at once
_LEASE = "warm"


class Wish(NamedTuple):
    """Boxes that a pool wants. `worker_id`: of the worker that wants them for itself."""

    pool: WarmPool
    worker_id: str | None = None

    @property
    def key(self) -> str:
        return key_of(spec_of(self.pool)) or ""


class Plan(NamedTuple):
    """`missing`: wishes, one for each box that is to be made. `useless`: boxes that are to be removed."""

    missing: list[Wish]
    useless: list[WarmBox]


class Pools:
    """Looks after the pools of a fleet; `warm` counts the claims, `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        calls: Calls,
        turns: Turns,
        creation: Creation,
        warm: Warm,
        leases: Leases,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._turns = turns
        self._creation = creation
        self.warm = warm
        self._leases = leases
        self._clock = clock
        self._images: dict[str, tuple[float, dict[str, str]]] = {}  # by worker id: until when, and ids by reference
        self._pauses = Backoff(LOOK_SECONDS, LONGEST_PAUSE, clock)  # by wish
        self._loop = Loop(
            "the warm boxes cannot be looked after", self._look_again, retry=LOOK_SECONDS, sleep=self._sleep
        )

    def start(self) -> None:
        self._loop.start(after=LOOK_SECONDS)

    async def close(self) -> None:
        await self._loop.close()

    async def _look_again(self) -> float:
        await self.look()
        return LOOK_SECONDS

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.warm.wanted.wait(), seconds)

    async def keep(self, pools: list[WarmPool]) -> None:
        """Replace the pools of the fleet. Raises InvalidArgumentError when two are of one kind."""
        if len({pool[:3] for pool in pools}) < len(pools):
            raise errors.InvalidArgumentError("pools: two pools have the same image, cpus and memory; make them one")
        async with self._store.transaction() as tx:
            await tx.put_warm_pools(pools)
        self.warm.wanted.set()

    async def ready(self) -> list[tuple[Wish, int]]:
        """All that is wished for, by the fleet and by workers, each with the number of boxes that are ready for it."""
        wishes = wishes_of(await self._store.warm_pools(), await self._store.list_workers())
        return ready(wishes, await self._store.warm_boxes())

    async def look(self) -> None:
        """Remove the boxes that are of no use, and make some of those that are missing."""
        self.warm.wanted.clear()
        workers = {worker.id: worker for worker in await self._store.list_workers()}
        wishes = wishes_of(await self._store.warm_pools(), workers.values())
        self.warm.kept = frozenset(wish.key for wish in wishes)
        boxes = await self._store.warm_boxes()
        if not wishes and not boxes:
            return
        async with self._leases.try_hold(_LEASE) as lease:
            if lease is None:
                return
            reachable = {worker_id: worker for worker_id, worker in workers.items() if self._fleet.is_reachable(worker)}
            images = {
                box.worker_id: await self._images_of(box.worker_id) for box in boxes if box.worker_id in reachable
            }
            plan = planned(wishes, boxes, reachable, images)
            await asyncio.gather(*(self._discard(box) for box in plan.useless))
            now = self._clock()
            due = [wish for wish in plan.missing if self._pauses.due_at(str(wish)) <= now]
            made = await asyncio.gather(*(self._make(wish) for wish in due[:MAX_MAKING]))
            if any(made) and len(due) > MAX_MAKING:
                self.warm.wanted.set()

    async def _make(self, wish: Wish) -> bool:
        """Make a warm box; returns whether there is one more."""
        spec = spec_of(wish.pool)
        making = self._creation.being_made(WARM_PREFIX, spec, only=wish.worker_id, warm=wish.key)
        try:
            async with making as (box, worker):
                request = pb.CreateBoxRequest(box=box, spec=spec.to_proto(box.box_id), prepare=True)
                state = await self._calls.create_box(worker, request)
                if not state.unclaimed:
                    raise errors.UnsupportedError(f"worker {worker.name} does not prepare boxes")  # an older version
                await self._turns.change(box.box_id, engine_life=state.engine_life, image_id=state.image_id)
        except errors.BoxliteError as exc:
            log.info("no warm box of %s can be made now: %s", wish.pool.image, exc.message)
            self._pauses.failed(str(wish))
            return False
        self._pauses.succeeded(str(wish))
        self.warm.count_made()
        return True

    async def _discard(self, box: WarmBox) -> None:
        try:
            await self.warm.discard(box.id)
        except errors.BoxliteError as exc:
            log.warning("warm box %s cannot be removed yet: %s", box.id, exc)

    async def _images_of(self, worker_id: str) -> Mapping[str, str] | None:
        """The ids of a worker's images by their full references, at most a minute old; None when it does not answer."""
        until, known = self._images.get(worker_id, (0.0, {}))
        if until <= self._clock():
            try:
                listed = await self._calls.list_images(worker_id)
            except errors.BoxliteError:
                return None
            known = {image.reference: image.image_id for image in listed.images}
            self._images[worker_id] = (self._clock() + IMAGES_SECONDS, known)
        return known


def wishes_of(pools: Iterable[WarmPool], workers: Iterable[Worker]) -> list[Wish]:
    """All wishes, those of workers first."""
    own = [(worker, image, boxes) for worker in workers for image, boxes in worker.warm_images.items()]
    return [*(Wish(pool_of(image, boxes), worker.id) for worker, image, boxes in own), *map(Wish, pools)]


def planned(
    wishes: Iterable[Wish],
    boxes: Iterable[WarmBox],
    workers: Mapping[str, Worker],
    images: Mapping[str, Mapping[str, str] | None],
) -> Plan:
    """What is to be made and to be removed. `workers`: those that can be reached, by id; nothing is planned about the
    boxes of others. `images`: by worker id, the ids of its images by reference; None: not known."""
    useless = [box for box in boxes if box.worker_id in workers and not _is_good(box, workers[box.worker_id], images)]
    good: defaultdict[str, list[WarmBox]] = defaultdict(list)
    for box in boxes:
        if box.worker_id in workers and box not in useless and box.status != BoxStatus.REMOVING:
            good[box.warm].append(box)
    missing: list[Wish] = []
    for wish in wishes:
        worker = workers.get(wish.worker_id or "")
        if wish.worker_id and (worker is None or worker.status != WorkerStatus.ACTIVE):
            continue
        having = [box for box in good[wish.key] if wish.worker_id in (None, box.worker_id)][: wish.pool.boxes]
        good[wish.key] = [box for box in good[wish.key] if box not in having]
        missing += [wish] * (wish.pool.boxes - len(having))
    surplus = [box for rest in good.values() for box in rest if box.status == BoxStatus.CONFIGURED]
    return Plan(missing, [*useless, *surplus])


def _is_good(box: WarmBox, worker: Worker, images: Mapping[str, Mapping[str, str] | None]) -> bool:
    """Whether a request may get the box, or the box is being made or removed."""
    if box.status in (BoxStatus.CREATING, BoxStatus.REMOVING):
        return True
    if box.status != BoxStatus.CONFIGURED or worker.status != WorkerStatus.ACTIVE:
        return False
    known = images.get(box.worker_id)
    is_moved = known is not None and box.image_id != known.get(box.warm.split()[0])
    return box.engine_life == worker.engine_life and not is_moved


def ready(wishes: Iterable[Wish], boxes: Iterable[WarmBox]) -> list[tuple[Wish, int]]:
    """Each wish with the number of boxes that wait for a request on its behalf."""
    waiting = [box for box in boxes if box.status == BoxStatus.CONFIGURED]
    found = []
    for wish in wishes:
        its = [box for box in waiting if box.warm == wish.key and wish.worker_id in (None, box.worker_id)]
        its = its[: wish.pool.boxes]
        waiting = [box for box in waiting if box not in its]
        found.append((wish, len(its)))
    return found
