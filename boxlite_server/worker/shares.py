"""Shares what a worker has a limited number of among tenants: slots of calls, or bytes of a disk.

A tenant gets more as long as it has less than `SHARE` times what is free. So one tenant alone gets three quarters, and
however many others there are, something is left for the next. A tenant that has more than that, since others have come
meanwhile, keeps it and gets nothing more until it has given some back: in the end all have the same.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import QuotaExceededError, ResourceExhaustedError
from ..rpc import Tenant

SHARE = 3
_STEP = 4 * 1024 * 1024  # bytes that are taken at once


class Shares:
    """`total` of something, called `what`. `quota`: the field of `Tenant` that bounds it too; empty for none."""

    def __init__(self, total: int, what: str, quota: str = "") -> None:
        self._total = total
        self._what = what
        self._quota = quota
        self._lock = threading.Lock()
        self._taken = 0
        self._taken_by: Counter[str] = Counter()  # by prefix

    @property
    def total(self) -> int:
        return self._total

    @property
    def taken(self) -> int:
        return self._taken

    def take(self, tenant: Tenant, amount: int = 1) -> None:
        """Take so much. Raises QuotaExceededError, and ResourceExhaustedError when too little is left."""
        with self._lock:
            self._check(tenant, amount)
            self._add(tenant.prefix, amount)

    def take_anyway(self, prefix: str, amount: int = 1) -> None:
        """Take what a former process of this worker had taken already."""
        with self._lock:
            self._add(prefix, amount)

    def give_back(self, prefix: str, amount: int = 1) -> None:
        with self._lock:
            self._add(prefix, -amount)
            if not self._taken_by[prefix]:
                del self._taken_by[prefix]

    @contextmanager
    def slot(self, tenant: Tenant) -> Iterator[None]:
        """Hold one during the `with` block. Raises what `take` raises."""
        self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant.prefix)

    def _check(self, tenant: Tenant, amount: int) -> None:
        has, free = self._taken_by[tenant.prefix], self._total - self._taken
        quota = getattr(tenant, self._quota, None)
        if quota is not None and has + amount > quota:
            raise QuotaExceededError(
                f"the quota {self._quota} of prefix '{tenant.prefix}' is {quota} on each worker, and is used up; "
                "wait until some have ended, or ask the operator"
            )
        if amount > free:
            raise ResourceExhaustedError(f"the worker {self._what} already; try again later")
        if tenant.prefix and has >= SHARE * free:
            raise ResourceExhaustedError(
                f"the worker {self._what} already, as many for prefix '{tenant.prefix}' as leave a share to others; "
                "try again later"
            )

    def _add(self, prefix: str, amount: int) -> None:
        self._taken += amount
        self._taken_by[prefix] += amount


class Room:
    """Bytes of `shares` that one file of a tenant takes."""

    def __init__(self, shares: Shares, tenant: Tenant) -> None:
        self._shares = shares
        self._tenant = tenant
        self.size = 0

    def reach(self, size: int, step: int = _STEP) -> None:
        """Take more, if need be, so that it is `size` bytes at least. Raises what `Shares.take` raises."""
        if size > self.size:
            more = -(-(size - self.size) // step) * step
            self._shares.take(self._tenant, more)
            self.size += more

    def take_anyway(self, size: int) -> None:
        """Take what a former process of this worker had taken already."""
        self._shares.take_anyway(self._tenant.prefix, size)
        self.size += size

    def close(self) -> None:
        """Give back all of it."""
        size, self.size = self.size, 0
        self._shares.give_back(self._tenant.prefix, size)
