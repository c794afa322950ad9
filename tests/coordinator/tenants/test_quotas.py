"""Quotas: what a prefix may have at most, whatever way it takes to have more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock
from support.coordinator_site import CoordinatorSite
from support.rows import open_store

from boxlite_server import errors
from boxlite_server.coordinator.limits import Policy
from boxlite_server.coordinator.store import ANY_PREFIX, Quotas, Store, Use
from boxlite_server.coordinator.tenants.quotas import FRESH_SECONDS, QuotaRows

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site(database: Path | str) -> AsyncIterator[CoordinatorSite]:
    """A coordinator with one worker."""
    site = CoordinatorSite(database)
    await site.open(site.one)
    yield site
    await site.core.close()


async def limit(site: CoordinatorSite, prefix: str = "acme", **quotas: int) -> None:
    async with site.core.store.transaction() as tx:
        await tx.put_quotas(prefix, Quotas(**quotas))


async def refused(attempt: Awaitable[Any], quota: str) -> None:
    with pytest.raises(errors.QuotaExceededError, match=f"the quota {quota} of prefix 'acme'"):
        await attempt


async def test_a_prefix_has_no_more_boxes_than_its_quota(site: CoordinatorSite) -> None:
    await limit(site, boxes=2)
    create, remove = site.core.creation.create, site.core.boxes.remove
    first, _ = await create("acme", {}), await create("acme", {})
    await refused(create("acme", {}), "boxes")
    await create("other", {})
    await remove("acme", first.id, force=False)
    await create("acme", {})


async def test_creates_at_the_same_time_do_not_pass_the_quota_together(site: CoordinatorSite) -> None:
    await limit(site, boxes=3)
    made = await asyncio.gather(*(site.core.creation.create("acme", {}) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(each, errors.QuotaExceededError) for each in made) == 5
    assert (await site.core.store.use_of("acme")).boxes == 3


async def test_no_more_boxes_run_than_the_quota_whichever_way_they_start(site: CoordinatorSite) -> None:
    await limit(site, running_boxes=1)
    boxes = site.core.boxes
    one = await site.core.creation.create("acme", {"start": True})
    two = await site.core.creation.create("acme", {})
    await refused(site.core.creation.create("acme", {"start": True}), "running_boxes")
    await refused(boxes.start("acme", two.id), "running_boxes")
    await refused(boxes.ensure_running("acme", two.id), "running_boxes")
    assert (await boxes.start("acme", one.id)).status == "running"  # it runs already
    await boxes.stop("acme", one.id, 1)
    await boxes.start("acme", two.id)
    await refused(boxes.start("acme", one.id), "running_boxes")
    await boxes.remove("acme", two.id, force=True)
    await boxes.start("acme", one.id)


async def test_starts_at_the_same_time_do_not_pass_the_quota_together(site: CoordinatorSite) -> None:
    await limit(site, running_boxes=2)
    made = [await site.core.creation.create("acme", {}) for _ in range(5)]
    begun = await asyncio.gather(*(site.core.boxes.start("acme", box.id) for box in made), return_exceptions=True)
    assert sum(isinstance(each, errors.QuotaExceededError) for each in begun) == 3
    assert (await site.core.store.use_of("acme")).running_boxes == 2


@pytest.mark.parametrize(("quota", "size"), [("cpus", {"cpus": 2}), ("memory_mib", {"memory_mib": 2048})])
async def test_a_stopped_box_has_to_fit_the_quota_again(site: CoordinatorSite, quota: str, size: Any) -> None:
    await limit(site, **{quota: 3 if quota == "cpus" else 3000})
    one = await site.core.creation.create("acme", {**size, "start": True})
    await refused(site.core.creation.create("acme", size), quota)
    await site.core.boxes.stop("acme", one.id, 1)
    two = await site.core.creation.create("acme", size)
    await refused(site.core.boxes.start("acme", one.id), quota)
    await site.core.boxes.remove("acme", two.id, force=False)
    await site.core.boxes.start("acme", one.id)


async def test_a_prefix_has_no_more_volumes_than_its_quota(site: CoordinatorSite) -> None:
    await limit(site, volumes=1)
    volume = await site.core.volumes.create("acme", "data")
    await refused(site.core.volumes.create("acme", "more"), "volumes")
    await site.core.volumes.remove("acme", volume.id, force=False)
    await site.core.volumes.create("acme", "more")


async def test_a_lower_quota_takes_nothing_away(site: CoordinatorSite) -> None:
    box = await site.core.creation.create("acme", {"start": True})
    await limit(site, boxes=0, running_boxes=0)
    assert (await site.core.boxes.get("acme", box.id)).status == "running"
    await refused(site.core.creation.create("acme", {}), "boxes")


async def test_clones_count(site: CoordinatorSite) -> None:
    await limit(site, boxes=1)
    box = await site.core.creation.create("acme", {})
    await refused(site.core.snapshots.clone("acme", box.id, None), "boxes")


async def test_quotas_of_every_prefix_hold_where_a_prefix_has_none(tmp_path: Path) -> None:
    async with open_store(tmp_path / "c.db") as store:
        rows = QuotaRows(store, Quotas(boxes=9, volumes=7))
        await store.put_quotas(ANY_PREFIX, Quotas(boxes=5, cpus=4))
        await store.put_quotas("acme", Quotas(cpus=6))
        assert await rows.of("acme") == Quotas(boxes=5, cpus=6, volumes=7)
        assert await rows.of("other") == Quotas(boxes=5, cpus=4, volumes=7)
        await store.delete_quotas(ANY_PREFIX)
        assert await QuotaRows(store).of("acme") == Quotas(cpus=6)
        async with store.transaction() as tx:
            await rows.check(tx, "other", Use(boxes=9))
            with pytest.raises(errors.QuotaExceededError, match="the quota boxes of prefix 'other' is 9"):
                await rows.check(tx, "other", Use(boxes=10))


async def test_the_flag_of_the_coordinator_is_the_quota_of_every_prefix(tmp_path: Path) -> None:
    site = CoordinatorSite(tmp_path / "c.db", policy=Policy(max_boxes_per_prefix=1))
    await site.open(site.one)
    await site.core.creation.create("acme", {})
    await refused(site.core.creation.create("acme", {}), "boxes")
    await limit(site, boxes=2)
    await site.core.creation.create("acme", {})
    await site.core.close()


async def test_requests_of_a_prefix_come_no_faster_than_its_quota(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "c.db") as store:
        rows = QuotaRows(store, monotonic=clock)
        await store.put_quotas("acme", Quotas(requests_per_second=3))

        async def taken() -> int:
            for count in range(100):
                try:
                    await rows.take_request("acme")
                except errors.QuotaExceededError:
                    return count
            return 100

        assert await taken() == 3
        clock.now += 0.4
        assert await taken() == 1
        clock.now += 3600
        assert await taken() == 3
        await rows.take_request("other")


async def test_quotas_are_read_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reads = Clock(), 0
    original = Store.quotas_of

    async def counted(self: Store, prefix: str) -> Quotas:
        nonlocal reads
        reads += 1
        return await original(self, prefix)

    monkeypatch.setattr(Store, "quotas_of", counted)
    async with open_store(tmp_path / "c.db") as store:
        rows = QuotaRows(store, monotonic=clock)
        for _ in range(100):
            await rows.take_request("acme")
        assert reads == 1
        await store.put_quotas("acme", Quotas(requests_per_second=0))
        clock.now += FRESH_SECONDS
        with pytest.raises(errors.QuotaExceededError):
            await rows.take_request("acme")
        assert reads == 2
