"""Leases say which coordinator, of all on one database, may do what now.

A lease is a row: a name, its holder, and when it ends. The holder is one life of a coordinator's process, which
renews the lease for as long as it is needed. A lease of a process that died ends by itself, so nothing stays locked.
Within the process a lock stands before each row, so that operations on one thing have their turn in the order in
which they came; between processes the lease goes to the process that finds it free first.

    box/ID           an operation on a box
    volume/ID        a volume is being made or removed
    key/OWNER/KEY    a request with an Idempotency-Key is being carried out
    attach/ID        a client is attached to an execution
    use/BOX/HOLDER   somebody uses a box through that coordinator: the box is not idle

A process may be held up for longer than its leases last, and go on as if nothing had happened. Therefore an operation
writes in a transaction that first checks that the lease is still its own (`writing`). That check needs no clock.
Taking a lease that has run out needs one: the clocks of the coordinators have to agree within a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from .. import errors
from ..metrics import coordinator as metrics
from .limits import PATIENCE_SECONDS
from .loops import Loop
from .store import Store, Tables

log = logging.getLogger(__name__)

TTL_SECONDS = 15.0
RENEW_SECONDS = 5.0  # two renewals may fail, and the clocks may be 2 s apart
CLOSE_SECONDS = 2.0
RETRY_SECONDS = 1.0

# Seconds between two tries to take a lease that another coordinator holds.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class Lease:
    """A lease that is held; `lost` is done when it turns out that another coordinator has taken it meanwhile."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ends_at = 0.0  # Unix seconds, as far as this process knows


class Leases:
    """The leases of this process, `holder`, in the store; `clock` gives Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float], holder: str) -> None:
        self.holder = holder
        self._store = store
        self._clock = clock
        self._rng = random.Random(holder)  # only pauses depend on it  # nosec B311
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held: dict[str, Lease] = {}
        self._none_held = asyncio.Event()
        self._none_held.set()
        self._sharers: Counter[str] = Counter()
        self._loop = Loop("the leases cannot be renewed", self._renew_held, retry=RETRY_SECONDS)
        self._closed = False

    # ---- holding --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self, name: str, what: str, patience: float = PATIENCE_SECONDS) -> AsyncIterator[Lease]:
        """Hold the lease for the duration of the `with` block. Raises BusyError when it is not free within
        `patience` seconds; `what` names in its text what is busy."""
        lock = self._lock(name)
        began = asyncio.get_running_loop().time()
        deadline = began + patience
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise _busy(what, patience) from None
        async with self._releasing(name, lock) as lease:
            if not await self._take(lease, deadline):
                raise _busy(what, patience)
            metrics.LEASE_SECONDS.observe(asyncio.get_running_loop().time() - began)
            yield lease

    @asynccontextmanager
    async def try_hold(self, name: str) -> AsyncIterator[Lease | None]:
        """Hold the lease for the duration of the `with` block if it is free now; yields None when it is not."""
        lock = self._lock(name)
        if lock.locked():
            yield None
            return
        await lock.acquire()
        async with self._releasing(name, lock) as lease:
            yield lease if await self._take(lease, 0.0) else None

    @asynccontextmanager
    async def share(self, name: str) -> AsyncIterator[None]:
        """Hold a lease whose name contains this process's holder, together with other tasks of the process: the
        first one takes it, the last one releases it."""
        lock, lease = self._lock(name), Lease(name)
        async with lock:
            if name not in self._held and not await self._take(lease, 0.0):
                self._hold(lease)  # a row of that name is this process's own
            self._sharers[name] += 1
        try:
            yield
        finally:
            self._sharers[name] -= 1
            if not self._sharers[name]:
                await self._leave(name, lock)

    async def is_held(self, name: str) -> bool:
        """Whether anybody holds that lease, or waits for it in this process."""
        lock = self._locks.get(name)
        return (lock is not None and lock.locked()) or await self._store.is_leased(name, self._clock())

    async def is_any_held(self, prefix: str) -> bool:
        """Whether anybody holds a lease whose name begins with `prefix`."""
        return await self._store.is_leased(prefix, self._clock())

    @property
    def held(self) -> int:
        """How many leases this process holds, or is taking."""
        return len(self._held)

    # ---- writing --------------------------------------------------------------------------------------

    async def check(self, tx: Tables, name: str) -> None:
        """In the transaction that writes: raises LeaseLostError when the lease belongs to another holder, or to
        nobody, by now. A lease that has run out is still this process's own for as long as nobody took it."""
        if not await tx.holds_lease(name, self.holder, 0.0):
            raise errors.LeaseLostError(
                "this coordinator was held up for so long that another one may have taken over; check what became of it"
            )

    @asynccontextmanager
    async def writing(self, name: str, *, durable: bool = True) -> AsyncIterator[Tables]:
        """A transaction for the holder of the lease; see `Store.transaction`. Raises LeaseLostError."""
        async with self._store.transaction(durable=durable) as tx:
            await self.check(tx, name)
            yield tx

    # ---- keeping --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.start(after=RENEW_SECONDS)

    async def close(self) -> None:
        """Take no more leases and release all: when their operations have ended, or after CLOSE_SECONDS. Writes of
        an operation that goes on after that are refused."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._none_held.wait()
        await self._loop.close()
        for name in list(self._held):
            await self._release(name)

    async def renew(self) -> None:
        """Renew all leases that are held, in one statement."""
        held, now = list(self._held.values()), self._clock()
        ours = await self._store.renew_leases(self.holder, [lease.name for lease in held], now + TTL_SECONDS)
        for lease in held:
            if lease.name in ours:
                lease.ends_at = now + TTL_SECONDS
            elif 0.0 < lease.ends_at <= now and not lease.lost.done():
                log.warning("lease %s has run out, and is another coordinator's now", lease.name)
                metrics.LEASES_LOST.inc()
                lease.lost.set_result(None)

    async def _renew_held(self) -> float:
        if self._held:
            await self.renew()
        return RENEW_SECONDS

    # ---- rows -----------------------------------------------------------------------------------------

    def _lock(self, name: str) -> asyncio.Lock:
        """The lock before a lease; it lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(name, asyncio.Lock())

    @asynccontextmanager
    async def _releasing(self, name: str, lock: asyncio.Lock) -> AsyncIterator[Lease]:
        try:
            yield Lease(name)
        finally:
            try:
                await self._release(name)
            finally:
                lock.release()

    async def _leave(self, name: str, lock: asyncio.Lock) -> None:
        """Release a lease that nobody shares any more, unless somebody shares it again before the lock is free."""
        try:
            async with lock:
                if not self._sharers[name]:
                    del self._sharers[name]
                    await self._release(name)
        except asyncio.CancelledError:
            if not self._sharers[name]:
                self._drop(name)  # no longer renewed, the lease ends by itself
            raise

    async def _take(self, lease: Lease, deadline: float) -> bool:
        """Take the row, trying until `deadline` (in the loop's time) and at least once; returns whether it was
        taken."""
        pause = _FIRST_PAUSE
        while True:
            if self._closed:
                raise errors.BusyError("this coordinator is stopping; try again")
            now = self._clock()
            self._hold(lease)  # a cancelled statement may have taken the row all the same
            if await self._store.acquire_lease(lease.name, self.holder, now, now + TTL_SECONDS):
                lease.ends_at = now + TTL_SECONDS
                return True
            self._drop(lease.name)
            rest = deadline - asyncio.get_running_loop().time()
            if rest <= 0:
                return False
            await asyncio.sleep(min(rest, pause * self._rng.uniform(0.5, 1.5)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _release(self, name: str) -> None:
        if name not in self._held:
            return
        try:
            await self._store.release_lease(name, self.holder)
        except errors.DatabaseError as exc:
            log.warning("lease %s cannot be released, and will run out: %s", name, exc)
        finally:
            self._drop(name)

    def _hold(self, lease: Lease) -> None:
        self._held[lease.name] = lease
        self._none_held.clear()

    def _drop(self, name: str) -> None:
        self._held.pop(name, None)
        if not self._held:
            self._none_held.set()


def _busy(what: str, patience: float) -> errors.BusyError:
    metrics.LEASES_BUSY.inc()
    return errors.BusyError(f"{what} is busy with another operation, and was for {patience:.0f} s; try again")
