"""What each prefix may have at most, and how many requests it may send.

What is bounded in the whole fleet is checked in the transaction that writes the row. Requests are counted by each
coordinator for itself. Executions, transfers and spooled bytes are counted by each worker, which hears their quotas
with the calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ... import errors
from ...rpc import Tenant
from ..store import Quotas, Store, Tables, Use

T = TypeVar("T")

FRESH_SECONDS = 5.0  # for which quotas that were read are taken as true
MAX_KNOWN = 10_000  # prefixes whose quotas are remembered

_REMEDIES = {
    "boxes": "remove one first",
    "running_boxes": "stop one first",
    "volumes": "remove one first",
    "cpus": "stop or remove a box first",
    "memory_mib": "stop or remove a box first",
}


class _Known(NamedTuple):
    quotas: Quotas
    read_at: float


class QuotaRows:
    """The quotas of all prefixes as one coordinator remembers them. `default`: those of prefixes for which the database
    has none. `monotonic` gives any seconds that nobody sets."""

    def __init__(
        self,
        store: Store,
        default: Quotas = Quotas(),  # noqa: B008
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.default = default
        self._store = store
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}  # by prefix, the oldest first
        self._buckets: dict[str, tuple[float, float]] = {}  # by prefix: requests that are free, and when that was right

    async def of(self, prefix: str) -> Quotas:
        """What holds for a prefix, at most `FRESH_SECONDS` old. Raises DatabaseError."""
        known = self._known.get(prefix)
        if known is None or self._monotonic() - known.read_at >= FRESH_SECONDS:
            known = _Known((await self._store.quotas_of(prefix)).over(self.default), self._monotonic())
            _remember(self._known, prefix, known)
        return known.quotas

    async def check(self, tx: Tables, prefix: str, more: Use) -> None:
        """Check in the transaction that gives a prefix more. Raises QuotaExceededError, which names the quota."""
        quotas = (await tx.quotas_of(prefix)).over(self.default)
        if quotas[: len(more)] == Quotas()[: len(more)]:
            return
        use = await tx.use_of(prefix)
        for name, wanted, has, limit in zip(Use._fields, more, use, quotas, strict=False):
            if wanted and limit is not None and has + wanted > limit:
                raise errors.QuotaExceededError(
                    f"the quota {name} of prefix '{prefix}' is {limit}, of which {has} are in use, and this needs "
                    f"{wanted} more; {_REMEDIES[name]}, or ask the operator"
                )

    async def take_request(self, prefix: str) -> Tenant:
        """Count a request; returns what workers have to hear of its prefix. Raises QuotaExceededError when the prefix
        sends too many in a second."""
        quotas = await self.of(prefix)
        if quotas.requests_per_second is not None:
            self._count_request(prefix, quotas.requests_per_second)
        return Tenant(prefix, quotas.executions, quotas.transfers, quotas.spooled_bytes)

    def _count_request(self, prefix: str, rate: int) -> None:
        now = self._monotonic()
        free, at = self._buckets.get(prefix, (float(rate), now))
        free = min(float(rate), free + (now - at) * rate)
        if free < 1:
            raise errors.QuotaExceededError(
                f"the quota requests_per_second of prefix '{prefix}' is {rate}; send the request again in a second"
            )
        _remember(self._buckets, prefix, (free - 1, now))


def _remember(known: dict[str, T], prefix: str, value: T) -> None:
    known.pop(prefix, None)
    known[prefix] = value
    if len(known) > MAX_KNOWN:
        del known[next(iter(known))]
