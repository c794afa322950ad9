"""Slows down whoever sends wrong keys. Right keys are never held up, from whatever address they come."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ... import errors

FREE = 10  # wrong keys that an address may send at once
REFILL_SECONDS = 5.0  # after which it may send one more
HOLD_SECONDS = 0.5  # for which the answer to each further one is held back
MAX_HELD = 16  # answers that are held back for one address; any further is 429 at once
MAX_ADDRESSES = 10_000  # that are remembered


@dataclass
class _Address:
    free: float
    at: float  # when `free` was right
    held: int = 0


class Attempts:
    """Wrong keys, by the address that they come from; one network of 64 bits counts as one address of IPv6."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._addresses: dict[str, _Address] = {}  # the one that was not heard of for longest comes first

    async def failed(self, address: str) -> None:
        """Note a wrong key, and return when it may be answered. Raises ResourceExhaustedError when too many answers
        are held back for the address."""
        known = self._seen(_network(address))
        if known.free >= 1:
            known.free -= 1
            return
        if known.held >= MAX_HELD:
            raise errors.ResourceExhaustedError("too many wrong API keys come from this address; try again later")
        known.held += 1
        try:
            await self._sleep(HOLD_SECONDS)
        finally:
            known.held -= 1

    def _seen(self, network: str) -> _Address:
        now = self._monotonic()
        known = self._addresses.pop(network, None) or _Address(FREE, now)
        known.free = min(FREE, known.free + (now - known.at) / REFILL_SECONDS)
        known.at = now
        self._addresses[network] = known
        if len(self._addresses) > MAX_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]
        return known


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
