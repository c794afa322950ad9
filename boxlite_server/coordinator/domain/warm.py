"""Warm boxes: boxes that nobody owns yet, prepared at a worker, each for the first request that it fits.

A warm box is a row like any other, with its room reserved, under a prefix that no request can name. Its container runs
and awaits its main command. A request that fits claims the box: one statement gives the row the request's prefix, name
and spec, and from then on the box is created like any other, by a worker that has the most of it already.
`control/pools.py` makes warm boxes and replaces them; here they are given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection

from ... import errors, references
from ..._gen import worker_pb2 as pb
from ..fleet.placement import Candidate, Need, place
from ..fleet.registry import Fleet
from ..spec import DEFAULT_CPUS, DEFAULT_MEMORY_MIB, Spec
from ..states import BoxStatus
from ..store import WARM_PREFIX, Store, WarmBox, WarmPool
from .counting import Counting
from .observing import Observer
from .turns import Turns

log = logging.getLogger(__name__)


def pool_of(image: str, boxes: int, cpus: int | None = None, memory_mib: int | None = None) -> WarmPool:
    """The pool of boxes of an image and a size, by default that of any box. Raises InvalidArgumentError for a malformed
    reference."""
    full = str(references.parse(image).tagged())
    return WarmPool(full, cpus or DEFAULT_CPUS, memory_mib or DEFAULT_MEMORY_MIB, boxes)


def spec_of(pool: WarmPool) -> Spec:
    """What the boxes of a pool are made of."""
    return Spec(image=pool.image, cpus=pool.cpus, memory_mib=pool.memory_mib)


def key_of(spec: Spec) -> str | None:
    """What a box of this spec has in common with all boxes that can stand in for it; None for a box whose making takes
    more than an image and a size. The environment, the working directory and the main command are set at the claim; the
    name counts only as the name of the host, which a warm box has from its id."""
    try:
        pool = pool_of(spec.image, 0, spec.cpus, spec.memory_mib)
    except errors.InvalidArgumentError:
        return None
    if _made_of(spec) != _made_of(Spec(image=spec.image, cpus=spec.cpus, memory_mib=spec.memory_mib)):
        return None
    return f"{pool.image} {pool.cpus} {pool.memory_mib}"


def _made_of(spec: Spec) -> pb.BoxSpec:
    message = spec.to_proto("")
    for name in ("hostname", "env", "entrypoint", "cmd"):
        message.ClearField(name)
    if spec.working_dir.startswith("/"):
        message.ClearField("working_dir")
    return message


class Warm:
    """Gives warm boxes up, and counts what becomes of all."""

    def __init__(self, store: Store, fleet: Fleet, turns: Turns, observer: Observer, counting: Counting) -> None:
        self._store = store
        self._fleet = fleet
        self._turns = turns
        self._observer = observer
        self._counting = counting
        self.wanted = asyncio.Event()  # set when there is a warm box less
        self.kept: frozenset[str] = frozenset()  # of what kinds there should be warm boxes

    def count_claim(self, prefix: str) -> None:
        """Count a request that got a warm box."""
        self._counting.add(prefix, "warm_claims")
        self.wanted.set()

    def count_miss(self, prefix: str, key: str | None) -> None:
        """Count a request that got no warm box, if there should have been one."""
        if key in self.kept:
            self._counting.add(prefix, "warm_misses")

    def count_made(self) -> None:
        """Count a warm box that was made."""
        self._counting.add(WARM_PREFIX, "warm_made")

    async def discard(self, box_id: str) -> bool:
        """Remove a warm box, unless it has been claimed. Returns whether it is removed; one whose worker does not
        answer is removed later."""
        async with self._turns.alone(box_id):
            async with self._turns.writing(box_id) as tx:
                box = await tx.get_box(box_id)
                if box is None or box.prefix != WARM_PREFIX:
                    return False
                await tx.update_box(box_id, status=BoxStatus.REMOVING)
            await self._observer.clean_up(box)
            return True

    async def give_up(self, need: Need, tried: Collection[str] = ()) -> bool:
        """Make room for a box by removing warm boxes: as few as will do, at one worker whose name is not in `tried`.
        Returns whether there may be room now."""
        boxes: defaultdict[str, list[WarmBox]] = defaultdict(list)
        for box in await self._store.warm_boxes():
            if box.status == BoxStatus.CONFIGURED:
                boxes[box.worker_id].append(box)
        candidates = await self._fleet.candidates() if boxes else []
        options = [_enough(need, c, boxes[c.worker.id]) for c in candidates if c.worker.name not in tried]
        chosen = min(filter(None, options), key=len, default=[])
        if chosen:
            log.info("giving up %d warm boxes to make room", len(chosen))
        gone = await asyncio.gather(*(self._try_to_discard(box.id) for box in chosen))
        for _ in filter(None, gone):
            self._counting.add(WARM_PREFIX, "warm_given_up")
        return any(gone)

    async def _try_to_discard(self, box_id: str) -> bool:
        try:
            return await self.discard(box_id)
        except errors.BoxliteError as exc:
            log.warning("warm box %s cannot be given up: %s", box_id, exc)
            return False


def _enough(need: Need, candidate: Candidate, boxes: list[WarmBox]) -> list[WarmBox]:
    """The first of the boxes without which the candidate could take what is needed; empty if all would not do."""
    load = candidate.load
    for number, box in enumerate(boxes, 1):
        load = load._replace(
            cpus=load.cpus - box.cpus, memory_mib=load.memory_mib - box.memory_mib, boxes=load.boxes - 1
        )
        if place(need, [candidate._replace(load=load)]).workers:
            return boxes[:number]
    return []
