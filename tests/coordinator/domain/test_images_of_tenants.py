"""The cache of images is shared; what a tenant sees, uses and removes of privately pulled ones is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb

PRIVATE, PUBLIC = "registry.example/team/app", "docker.io/library/alpine"
ID = "sha256:" + "1" * 64


class Site:
    """A coordinator with one worker, whose registry has all images."""

    def __init__(self, runner: asyncio.Runner, site: CoordinatorSite) -> None:
        self.run = runner.run
        self.worker = site.one
        self.core = site.core

    def has(self, repository: str, tag: str = "1", image_id: str = ID) -> None:
        """Let the worker have the image."""
        reference = f"{repository}:{tag}"
        image = pb.Image(reference=reference, image_id=image_id, cached_at_ms=1, private=repository == PRIVATE)
        self.worker.images.append(image)

    def pull(self, tenant: str | None, repository: str) -> None:
        async def events() -> AsyncIterator[Any]:
            is_missing = not any(image.reference == f"{repository}:1" for image in self.worker.images)
            if is_missing:
                self.has(repository)
            image = pb.Image()
            image.CopyFrom(next(each for each in self.worker.images if each.reference == f"{repository}:1"))
            image.pulled = is_missing
            yield pb.PullImageEvent(image=image)

        async def story() -> None:
            self.worker.streams["PullImage"] = events()
            async for _ in self.core.images.pull(f"{repository}:1", tenant):
                pass

        self.run(story())

    def seen(self, tenant: str | None) -> set[str]:
        return {image.repository for image in self.run(self.core.images.all(tenant))}

    def remove(self, tenant: str | None, repository: str) -> None:
        self.run(self.core.images.remove(f"{repository}:1", tenant))

    def create(self, tenant: str | None, image: str) -> None:
        self.run(self.core.creation.create(tenant or "default", {"image": image}, tenant=tenant))

    @property
    def pulls(self) -> int:
        return self.worker.calls.count("PullImage")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = CoordinatorSite(tmp_path / "c.db")
    with asyncio.Runner() as runner:
        runner.run(site.open(site.one))
        yield Site(runner, site)
        runner.run(site.core.close())


def test_what_one_tenant_has_pulled_privately_is_not_there_for_another(site: Site) -> None:
    site.pull("acme", PRIVATE)
    assert site.seen("acme") == site.seen(None) == {PRIVATE}
    assert site.seen("other") == set()
    for name in (f"{PRIVATE}:1", PRIVATE, ID, ID[:19]):
        with pytest.raises(errors.NotFoundError, match="image not found"):
            site.run(site.core.images.find(name, "other"))
    with pytest.raises(errors.NotFoundError):
        site.remove("other", PRIVATE)
    with pytest.raises(errors.ImageError, match="not found"):
        site.create("other", ID)
    site.create("acme", ID)


def test_another_tenant_uses_a_private_image_only_as_its_registry_lets_it(site: Site) -> None:
    site.pull("acme", PRIVATE)
    site.create("acme", f"{PRIVATE}:1")
    assert site.pulls == 1

    async def refused() -> AsyncIterator[Any]:
        raise errors.ImageError("access denied")
        yield

    for name in (f"{PRIVATE}:1", f"{PRIVATE}@{ID}"):
        site.worker.streams["PullImage"] = refused()
        with pytest.raises(errors.ImageError, match="access denied"):
            site.create("other", name)
    assert site.seen("other") == set()
    site.pull("other", PRIVATE)
    assert site.seen("other") == {PRIVATE}
    site.create("other", f"{PRIVATE}:1")


def test_another_tenant_uses_a_public_image_without_a_pull(site: Site) -> None:
    site.pull("acme", PUBLIC)
    site.create("other", f"{PUBLIC}:1")
    assert site.pulls == 1


def test_what_a_create_has_pulled_is_the_tenants_too(site: Site) -> None:
    site.worker.pulls = True
    site.has(PRIVATE)  # as after the create
    site.create("acme", f"{PRIVATE}:1")
    assert (site.seen("acme"), site.seen("other")) == ({PRIVATE}, set())


def test_what_the_operator_brought_is_for_all_and_stays(site: Site) -> None:
    site.has(PRIVATE)
    site.has(PUBLIC)
    site.create("acme", f"{PUBLIC}:1")
    site.pull("acme", PUBLIC)
    assert site.seen("acme") == site.seen("other") == {PRIVATE, PUBLIC}
    for repository in (PRIVATE, PUBLIC):
        with pytest.raises(errors.PermissionDeniedError, match="only an operator can remove it"):
            site.remove("other", repository)
    site.remove(None, PRIVATE)
    assert site.seen("acme") == {PUBLIC}


def test_a_public_image_is_for_all_and_goes_with_the_last_who_pulled_it(site: Site) -> None:
    site.pull("acme", PUBLIC)
    assert site.seen("other") == {PUBLIC}
    with pytest.raises(errors.PermissionDeniedError):
        site.remove("other", PUBLIC)
    site.pull("other", PUBLIC)
    site.remove("acme", PUBLIC)
    assert site.seen("other") == {PUBLIC}
    site.remove("other", PUBLIC)
    assert site.seen(None) == set()


def test_a_private_image_that_is_removed_is_hidden_from_whoever_removed_it_alone(site: Site) -> None:
    for tenant in ("acme", "other"):
        site.pull(tenant, PRIVATE)
    site.remove("acme", PRIVATE)
    assert (site.seen("acme"), site.seen("other"), site.seen(None)) == (set(), {PRIVATE}, {PRIVATE})
    site.remove("other", PRIVATE)
    assert site.seen(None) == set()
    site.has(PRIVATE)  # at a worker that was away
    assert (site.seen("acme"), site.seen("other")) == (set(), set())


def test_an_operator_sees_and_removes_all(site: Site) -> None:
    site.pull("acme", PRIVATE)
    site.remove(None, PRIVATE)
    assert site.seen(None) == set()
