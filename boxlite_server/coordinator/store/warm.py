"""The table of warm pools, and the warm boxes among all boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..states import BoxStatus
from .table import Table, reader

WARM_PREFIX = ""  # of boxes that nobody owns; no request can name it


class WarmPool(NamedTuple):
    """How many warm boxes of one kind the fleet keeps."""

    image: str  # the full reference
    cpus: int
    memory_mib: int
    boxes: int


class WarmBox(NamedTuple):
    """A box that nobody owns yet."""

    id: str
    worker_id: str
    status: BoxStatus
    warm: str  # what a request has to ask for to claim the box
    image_id: str | None
    engine_life: str | None  # in which it was prepared
    cpus: int
    memory_mib: int


_warm_box = reader(WarmBox, WarmBox._fields, status=BoxStatus)


class WarmPools(Table):
    """Methods over the table `warm_pools` and the warm boxes of the table `boxes`."""

    async def warm_pools(self) -> list[WarmPool]:
        rows = await self._read(
            "SELECT image, cpus, memory_mib, boxes FROM warm_pools ORDER BY image, cpus, memory_mib"
        )
        return [WarmPool(*row) for row in rows]

    async def put_warm_pools(self, pools: Iterable[WarmPool]) -> None:
        """Replace all pools; to be called in a transaction."""
        await self._write("DELETE FROM warm_pools")
        for pool in pools:
            await self._insert("warm_pools", pool._asdict())

    async def warm_boxes(self) -> list[WarmBox]:
        """All boxes that nobody owns yet, the oldest first."""
        rows = await self._read(
            f"SELECT {', '.join(WarmBox._fields)} FROM boxes WHERE warm IS NOT NULL ORDER BY created_at, id"
        )
        return [_warm_box(row) for row in rows]

    async def has_warm(self, warm: str) -> bool:
        """Whether there may be a box to claim."""
        return bool(await self._read("SELECT 1 FROM boxes WHERE warm = ? AND status = 'configured' LIMIT 1", (warm,)))
