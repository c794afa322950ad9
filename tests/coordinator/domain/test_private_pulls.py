"""A pull with credentials of a worker's host is the tenant's from its first moment on: whatever becomes of the
coordinator, the worker or the client in the middle of it, no other tenant sees what it brings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.coordinator_site import CoordinatorSite
from support.tasks import settle

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb

IMAGE = "registry.example/team/app:1"

Begin = Callable[[CoordinatorSite, str], Awaitable[None]]


async def pull(site: CoordinatorSite, tenant: str) -> None:
    async for _ in site.core.images.pull(IMAGE, tenant):
        pass


async def create(site: CoordinatorSite, tenant: str) -> None:
    await site.core.creation.create(tenant, {"image": IMAGE}, tenant=tenant)


both = pytest.mark.parametrize("begin", [pull, create])


@pytest.fixture
def site(tmp_path: Path) -> CoordinatorSite:
    site = CoordinatorSite(tmp_path / "c.db")
    site.one.private.add(IMAGE)
    return site


async def seen(site: CoordinatorSite) -> list[str]:
    """Who sees the image, of two tenants and the operator."""
    who = {"acme": "acme", "other": "other", "the operator": None}
    return [name for name, tenant in who.items() if await site.core.images.all(tenant)]


@both
def test_an_image_is_its_tenants_once_it_is_there(site: CoordinatorSite, begin: Begin) -> None:
    async def story(site: CoordinatorSite) -> None:
        await begin(site, "acme")
        assert await seen(site) == ["acme", "the operator"]
        await begin(site, "other")
        assert await seen(site) == ["acme", "other", "the operator"]

    site.run(story, site.one)


@both
def test_nobody_sees_it_when_the_coordinator_is_killed_before_it_is_noted(site: CoordinatorSite, begin: Begin) -> None:
    async def story(site: CoordinatorSite) -> None:
        has_come, _ = site.one.hold("PullImage", after=True)
        under_way = asyncio.create_task(begin(site, "acme"))  # type: ignore[arg-type]
        await has_come.wait()
        assert await seen(site) == ["the operator"]  # nor before
        await site.crash(under_way)
        assert await seen(site) == ["the operator"]
        await begin(site, "acme")
        assert await seen(site) == ["acme", "the operator"]
        assert await site.core.store.pulled() == {IMAGE.removesuffix(":1"): (frozenset({"acme"}), True)}

    site.run(story, site.one)


@both
def test_nobody_sees_it_when_the_worker_is_lost_before_it_answers(site: CoordinatorSite, begin: Begin) -> None:
    async def story(site: CoordinatorSite) -> None:
        site.one.lose("PullImage", after=True)
        with pytest.raises(errors.UpstreamUnavailableError):
            await begin(site, "acme")
        site.one.recover()
        await site.put(site.one)
        await site.pass_time(1)
        assert await seen(site) == ["the operator"]

    site.run(story, site.one)


def test_a_pull_is_noted_although_its_client_has_left(site: CoordinatorSite) -> None:
    async def story(site: CoordinatorSite) -> None:
        has_come, go_on = site.one.hold("PullImage", after=True)
        client = asyncio.create_task(pull(site, "acme"))  # type: ignore[arg-type]
        await has_come.wait()
        client.cancel()
        go_on.set()
        await settle()
        assert await seen(site) == ["acme", "the operator"]

    site.run(story, site.one)


def test_an_image_is_its_tenants_although_no_box_could_be_made_of_it(site: CoordinatorSite) -> None:
    async def story(site: CoordinatorSite) -> None:
        async def refuse_the_second() -> None:
            if site.one.images:
                raise errors.ImageError("it cannot run here")

        site.one.before["CreateBox"] = refuse_the_second
        with pytest.raises(errors.ImageError, match="cannot run"):
            await create(site, "acme")
        assert await seen(site) == ["acme", "the operator"]

    site.run(story, site.one)


@both
def test_a_pull_that_fails_hides_nothing_from_others(site: CoordinatorSite, begin: Begin) -> None:
    brought = pb.Image(reference="registry.example/team/app:2", image_id="sha256:2", cached_at_ms=1, private=True)

    async def story(site: CoordinatorSite) -> None:
        site.one.images.append(brought)

        async def refuse_the_second() -> None:
            if site.one.calls.count("PullImage") > (begin is pull):
                raise errors.ImageError("there is no such image")

        site.one.before["PullImage"] = refuse_the_second
        with pytest.raises(errors.ImageError, match="no such image"):
            await begin(site, "acme")
        assert await seen(site) == ["acme", "other", "the operator"]
        assert await site.core.store.pulled() == {}

    site.run(story, site.one)
