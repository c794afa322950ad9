"""Who may do what now, among all coordinators on one database.

A lease is a row: a name, its holder, and when it ends. Its holder is one life of a coordinator's process, which
prolongs it for as long as it is needed; that of a process which died ends by itself, so nothing stays locked.
Within the process a lock stands before each row, so that operations on one thing have their turn in the order in
which they came; between processes it is whoever finds the lease free first.

    box/ID           an operation on a box
    volume/ID        a volume is being made or removed
    key/OWNER/KEY    a request with an Idempotency-Key is being carried out
    attach/ID        a client is attached to an execution
    use/BOX/HOLDER   somebody uses a box through that coordinator: it is not idle

A process may be held up for longer than its leases last, and go on as if nothing had happened. So what an operation
writes is written in a transaction that looks first whether the lease is still its own (`writing`). That look needs
no clock. Taking a lease that has run out does: the clocks of the coordinators agree within a few seconds.
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
from .limits import PATIENCE_SECONDS
from .loops import Loop
from .store import Store, Tables

log = logging.getLogger(__name__)

TTL_SECONDS = 15.0
RENEW_SECONDS = 5.0  # two renewals may fail, and the clocks may be 2 s apart
CLOSE_SECONDS = 2.0
RETRY_SECONDS = 1.0

# Between two looks at a lease that another coordinator has.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class Lease:
    """One that is held; `lost` is set when it turns out that another coordinator has taken it meanwhile."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = asyncio.Event()
        self.ends_at = 0.0  # as far as is known here


class Leases:
    """The leases of this process, `holder`, in the store; `clock` gives Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float], holder: str) -> None:
        self.holder = holder
        self._store = store
        self._clock = clock
        self._rng = random.Random(holder)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held: dict[str, Lease] = {}
        self._none_held = asyncio.Event()
        self._none_held.set()
        self._sharers: Counter[str] = Counter()
        self._loop = Loop("the leases cannot be renewed", self._renew_held, retry=RETRY_SECONDS)
        self._closed = False

    # ---- having ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self, name: str, what: str, patience: float = PATIENCE_SECONDS) -> AsyncIterator[Lease]:
        """Be the one who has the lease, after at most `patience` seconds. Raises BusyError after them; `what` is
        what it calls busy, to a person."""
        lock = self._lock(name)
        deadline = asyncio.get_running_loop().time() + patience
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise _busy(what, patience) from None
        async with self._having(name, lock) as lease:
            if not await self._take(lease, deadline):
                raise _busy(what, patience)
            yield lease

    @asynccontextmanager
    async def try_hold(self, name: str) -> AsyncIterator[Lease | None]:
        """Have the lease if it is free now; None where it is not."""
        lock = self._lock(name)
        if lock.locked():
            yield None
            return
        await lock.acquire()
        async with self._having(name, lock) as lease:
            yield lease if await self._take(lease, 0.0) else None

    @asynccontextmanager
    async def share(self, name: str) -> AsyncIterator[None]:
        """Have a lease whose name is this process's own, together with others in it: the first one takes it, the
        last one gives it back."""
        lock, lease = self._lock(name), Lease(name)
        async with lock:
            if name not in self._held and not await self._take(lease, 0.0):
                self._hold(lease)  # what is there of that name is ours
            self._sharers[name] += 1
        try:
            yield
        finally:
            self._sharers[name] -= 1
            if not self._sharers[name]:
                await self._leave(name, lock)

    async def is_held(self, name: str) -> bool:
        """Whether anybody has that lease, or waits here to have it."""
        lock = self._locks.get(name)
        return (lock is not None and lock.locked()) or await self._store.is_leased(name, self._clock())

    async def is_any_held(self, prefix: str) -> bool:
        """Whether anybody has a lease whose name begins so."""
        return await self._store.is_leased(prefix, self._clock())

    # ---- writing --------------------------------------------------------------------------------------

    async def check(self, tx: Tables, name: str) -> None:
        """In the transaction that writes: raises LeaseLostError when the lease is another's, or nobody's, by now.
        One that has run out is still ours for as long as nobody took it."""
        if not await tx.holds_lease(name, self.holder, 0.0):
            raise errors.LeaseLostError(
                "this coordinator was held up for so long that another one may have taken over; look what became of it"
            )

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[Tables]:
        """A transaction of whoever has the lease. Raises LeaseLostError."""
        async with self._store.transaction() as tx:
            await self.check(tx, name)
            yield tx

    # ---- keeping --------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.start(after=RENEW_SECONDS)

    async def close(self) -> None:
        """Take no more, and give back all: at the end of who has them, or after some seconds without it. What
        such a one still wants to write is refused."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._none_held.wait()
        await self._loop.close()
        for name in list(self._held):
            await self._release(name)

    async def renew(self) -> None:
        """Prolong all that are held, in one statement."""
        held, now = list(self._held.values()), self._clock()
        ours = await self._store.renew_leases(self.holder, [lease.name for lease in held], now + TTL_SECONDS)
        for lease in held:
            if lease.name in ours:
                lease.ends_at = now + TTL_SECONDS
            elif 0.0 < lease.ends_at <= now and not lease.lost.is_set():
                log.warning("lease %s has run out, and is another coordinator's now", lease.name)
                lease.lost.set()

    async def _renew_held(self) -> float:
        if self._held:
            await self.renew()
        return RENEW_SECONDS

    # ---- rows -----------------------------------------------------------------------------------------

    def _lock(self, name: str) -> asyncio.Lock:
        """It lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(name, asyncio.Lock())

    @asynccontextmanager
    async def _having(self, name: str, lock: asyncio.Lock) -> AsyncIterator[Lease]:
        try:
            yield Lease(name)
        finally:
            try:
                await self._release(name)
            finally:
                lock.release()

    async def _leave(self, name: str, lock: asyncio.Lock) -> None:
        """Nobody shares the lease any more, unless somebody comes before our turn."""
        try:
            async with lock:
                if not self._sharers[name]:
                    del self._sharers[name]
                    await self._release(name)
        except asyncio.CancelledError:
            if not self._sharers[name]:
                self._drop(name)  # not prolonged, it ends by itself
            raise

    async def _take(self, lease: Lease, deadline: float) -> bool:
        """Wait for the row until the loop's `deadline`, and look at least once."""
        pause = _FIRST_PAUSE
        while True:
            if self._closed:
                raise errors.BusyError("this coordinator is stopping; try again")
            now = self._clock()
            self._hold(lease)  # broken off in the middle, it may be ours all the same
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
            log.warning("lease %s cannot be given back, and will run out: %s", name, exc)
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
    return errors.BusyError(f"{what} is busy with another operation, and was for {patience:.0f} s; try again")
