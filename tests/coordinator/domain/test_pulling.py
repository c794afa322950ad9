"""What becomes of a box or a pull when a worker cannot have the image, though another worker might."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.coordinator_site import CoordinatorSite
from support.fake_worker import id_of

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb

LOCAL = errors.LocalImageError("image 'x' cannot be pulled: dial tcp: i/o timeout")
FULL = errors.ResourceExhaustedError("image 'x' cannot be pulled: no space left on device")


@pytest.mark.parametrize("error", [LOCAL, FULL])
def test_a_pull_that_fails_for_the_hosts_own_reason_sends_the_box_to_the_next(
    tell: Any, error: errors.BoxliteError
) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.refuse("CreateBox", error)
        box = await site.create()
        assert (box.worker_id, list(two.boxes)) == (id_of("two"), [box.id])

    tell(story)


def test_an_image_that_no_host_can_have_is_asked_for_once(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.refuse("CreateBox", errors.ImageError("manifest unknown"))
        with pytest.raises(errors.ImageError, match=r"^manifest unknown$"):
            await site.create()
        assert two.calls == []

    tell(story)


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (LOCAL, errors.ImageError),
        (FULL, errors.ImageError),
        (errors.EngineError("the engine says no"), errors.UpstreamUnavailableError),
    ],
)
def test_when_no_worker_can_have_the_image_each_reason_is_told(
    tell: Any, second: errors.BoxliteError, kind: type[errors.BoxliteError]
) -> None:
    async def story(site: CoordinatorSite) -> None:
        for name, error in (("one", LOCAL), ("two", second)):
            (await site.register(name)).refuse("CreateBox", error)
        with pytest.raises(errors.BoxliteError) as refused:
            await site.create()
        assert (type(refused.value), refused.value.message) == (
            kind,
            f"no worker can take the box: 2 failed (one: {LOCAL.message}; two: {second.message})",
        )
        assert (await site.core.boxes.list("default")).boxes == []

    tell(story)


def test_full_disks_everywhere_are_told_as_what_they_are(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        (await site.register("one")).refuse("CreateBox", FULL)
        with pytest.raises(errors.ResourceExhaustedError, match="no space left"):
            await site.create()

    tell(story)


def test_a_worker_that_cannot_have_an_image_is_tried_last_for_a_minute(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, _ = await site.register("one"), await site.register("two")
        one.refuse("CreateBox", LOCAL)
        for _ in range(3):
            await site.create(image="far:1")
        assert one.calls.count("CreateBox") == 1
        await site.create(image="near:1")
        assert one.calls.count("CreateBox") == 2, "other images are asked for"
        one.recover()
        await site.pass_time(61)
        assert (await site.create(image="far:1")).worker_id == id_of("one")

    tell(story)


async def raising(error: Exception) -> AsyncIterator[Any]:
    yield pb.PullImageEvent(progress=pb.PullProgress(current_bytes=1, total_bytes=2))
    raise error


async def pulled() -> AsyncIterator[Any]:
    yield pb.PullImageEvent(image=pb.Image(reference="docker.io/library/x:1", image_id="sha256:1"))


def test_a_pull_goes_on_at_the_next_worker(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        one, two = await site.register("one"), await site.register("two")
        one.streams["PullImage"], two.streams["PullImage"] = raising(LOCAL), pulled()
        events = [event async for event in site.core.images.pull("x:1")]
        assert events[-1].workers == (id_of("two"),)  # type: ignore[union-attr]

    tell(story)


def test_a_pull_that_fails_everywhere_tells_each_reason(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        for name in ("one", "two"):
            (await site.register(name)).streams["PullImage"] = raising(LOCAL)
        with pytest.raises(errors.ImageError, match=r"no worker can take the pull: 2 failed \(one: .*; two: "):
            async for _ in site.core.images.pull("x:1"):
                pass

    tell(story)


def test_a_box_with_a_limited_disk_goes_to_a_worker_that_limits_it(tell: Any) -> None:
    async def story(site: CoordinatorSite) -> None:
        await site.register("one", disk_limit="unsupported")
        await site.register("old")
        for _ in range(2):
            with pytest.raises(errors.UnsupportedError, match="2 do not limit the disk of a box"):
                await site.create(disk_size_gb=1)
        await site.register("two", disk_limit="watched")
        assert {(await site.create(disk_size_gb=1)).worker_id for _ in range(3)} == {id_of("two")}
        await site.core.fleet.heartbeat(id_of("two"), {"epoch": site.workers["two"].row(0).epoch, "leaving": True})
        with pytest.raises(errors.UpstreamUnavailableError, match="1 unreachable"):
            await site.create(disk_size_gb=1)

    tell(story)
