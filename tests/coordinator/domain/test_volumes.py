"""Volumes by the coordinator's own book-keeping, with workers that answer as a test says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import rows
from support.blocking import Blocking
from support.coordinator_site import CoordinatorSite
from support.fake_worker import EVERY, FakeWorker

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.domain.volumes import Volumes
from boxlite_server.coordinator.host_access import Mount
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.store import Store


@pytest.fixture
def site(tmp_path: Path) -> CoordinatorSite:
    """A coordinator with two workers."""
    site = CoordinatorSite(tmp_path / "coordinator.db")
    return asyncio.run(site.open(site.one, site.two))


@pytest.fixture
def store(site: CoordinatorSite) -> Store:
    return site.core.store


@pytest.fixture
def volumes(site: CoordinatorSite) -> Volumes:
    return site.core.volumes


def box_with(site: CoordinatorSite, volume_id: str, worker: FakeWorker) -> None:
    row = rows.box(
        1,
        worker_id=worker.id,
        status="stopped",
        spec=Spec(image="alpine", mounts=(Mount("x", None, "/d", False, volume_id),)),
    )
    Blocking(site.core.store).insert_box(row)


def test_the_next_worker_is_tried(store: Store, volumes: Volumes, site: CoordinatorSite) -> None:
    site.one.refuse(EVERY, errors.UpstreamUnavailableError("gone"))
    made = asyncio.run(volumes.create("p", "data"))
    assert (made.worker_id, made.state) == (site.two.id, "ready")
    assert Blocking(store).list_volumes("p") == [made]
    for worker in (site.one, site.two):
        worker.refuse(EVERY, errors.EngineError("no engine"))
    with pytest.raises(errors.UpstreamUnavailableError, match=r"2 failed \(one: no engine; two: no engine\)"):
        asyncio.run(volumes.create("p", "more"))
    assert Blocking(store).list_volumes("p") == [made]


def test_what_was_left_half_made_is_finished_by_asking_again(
    store: Store, volumes: Volumes, site: CoordinatorSite
) -> None:
    site.one.refuse(EVERY, errors.TimedOutError("late"))
    with pytest.raises(errors.TimedOutError):
        asyncio.run(volumes.create("p", "data"))
    (left,) = Blocking(store).list_volumes("p")
    assert left.state == "creating"
    with pytest.raises(errors.InvalidStateError, match="creating"):
        mounts, _ = Blocking(volumes).resolve("p", [Mount("data", None, "/d", False)])
        asyncio.run(volumes.check_ready(store, mounts))
    site.one.recover()
    made = asyncio.run(volumes.create("p", "data"))
    assert (made.id, made.worker_id, made.state) == (left.id, left.worker_id, "ready")
    with pytest.raises(errors.AlreadyExistsError):
        asyncio.run(volumes.create("p", "data"))


def test_a_volume_in_use_is_kept_and_its_worker_not_asked(
    store: Store, volumes: Volumes, site: CoordinatorSite
) -> None:
    made = asyncio.run(volumes.create("p", None))
    assert made.worker_id == site.one.id
    box_with(site, made.id, site.one)
    site.one.calls.clear()
    with pytest.raises(errors.InvalidStateError, match="box1"):
        asyncio.run(volumes.remove("p", made.id, force=True))
    assert site.one.calls + site.two.calls == []
    Blocking(store).delete_box("box1")
    asyncio.run(volumes.remove("p", made.id, force=False))
    assert Blocking(store).list_volumes("p") == []


def test_a_removal_that_did_not_end_can_be_repeated(store: Store, volumes: Volumes, site: CoordinatorSite) -> None:
    asyncio.run(volumes.create("p", "data"))
    site.one.refuse(EVERY, errors.UpstreamUnavailableError("gone"))
    with pytest.raises(errors.UpstreamUnavailableError):
        asyncio.run(volumes.remove("p", "data", force=True))
    with pytest.raises(errors.InvalidStateError, match="deleting"):
        mounts, _ = Blocking(volumes).resolve("p", [Mount("data", None, "/d", False)])
        asyncio.run(volumes.check_ready(store, mounts))
    site.one.recover()
    asyncio.run(volumes.remove("p", "data", force=False))
    assert Blocking(store).list_volumes("p") == []


def test_what_the_engine_refuses_to_remove_is_as_before(store: Store, volumes: Volumes, site: CoordinatorSite) -> None:
    asyncio.run(volumes.create("p", "data"))
    site.one.refuse(EVERY, errors.InvalidStateError("a container has it"))
    with pytest.raises(errors.InvalidStateError, match="a container"):
        asyncio.run(volumes.remove("p", "data", force=False))
    assert Blocking(volumes).get("p", "data").state == "ready"


def test_an_id_comes_before_a_name(volumes: Volumes) -> None:
    first = asyncio.run(volumes.create("p", None))
    second = asyncio.run(volumes.create("q", first.id))
    assert Blocking(volumes).get("p", first.id) == first
    assert Blocking(volumes).get("q", first.id) == second


def test_a_removed_worker_takes_its_volumes_rows_along(store: Store, volumes: Volumes, site: CoordinatorSite) -> None:
    made = asyncio.run(volumes.create("p", "data"))
    with pytest.raises(errors.InvalidStateError, match=r"0 boxes and 1 volume;.*1 volume is forgotten"):
        asyncio.run(site.core.fleet.remove(made.worker_id, force=False))
    asyncio.run(site.core.fleet.remove(made.worker_id, force=True))
    assert Blocking(store).list_volumes("p") == []


# ---- images, over the same workers ----


def image(reference: str, image_id: str, at: int = 0, digests: tuple[str, ...] = ()) -> pb.Image:
    return pb.Image(reference=reference, image_id=image_id, cached_at_ms=at, size_bytes=5, digests=digests)


ALPINE = "docker.io/library/alpine"
OLD, NEW, MANIFEST = ("sha256:" + digit * 64 for digit in "123")


def test_the_same_version_on_two_workers_is_one_image(site: CoordinatorSite) -> None:
    site.one.images = [image(f"{ALPINE}:latest", NEW, 2000), image(f"{ALPINE}:3", NEW, 2000)]
    site.two.images = [image(f"{ALPINE}:latest", NEW, 1000), image(f"{ALPINE}:latest", OLD, 1)]
    found = asyncio.run(site.core.images.all())
    assert [(i.reference, i.id, i.cached_at, i.workers) for i in found] == [
        (f"{ALPINE}:3", NEW, 2.0, (site.one.id,)),
        (f"{ALPINE}:latest", OLD, 0.001, (site.two.id,)),
        (f"{ALPINE}:latest", NEW, 1.0, (site.one.id, site.two.id)),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpine", [(f"{ALPINE}:latest", NEW), (f"{ALPINE}:3", OLD)]),
        ("alpine:3", [(f"{ALPINE}:3", OLD)]),
        ("docker.io/library/alpine:latest", [(f"{ALPINE}:latest", NEW)]),
        (OLD, [(f"{ALPINE}:3", OLD)]),
        (MANIFEST, [(f"{ALPINE}:latest", NEW)]),
        (MANIFEST[:19], [(f"{ALPINE}:latest", NEW)]),
        (f"alpine@{MANIFEST}", [(f"{ALPINE}:latest", NEW)]),
    ],
)
def test_what_a_name_finds(site: CoordinatorSite, name: str, expected: list[tuple[str, str]]) -> None:
    site.one.images = [image(f"{ALPINE}:latest", NEW, 1, digests=(MANIFEST,))]
    site.two.images = [image(f"{ALPINE}:3", OLD, 2), image("ghcr.io/a/alpine:3", "sha256:9")]
    found, versions = asyncio.run(site.core.images.find(name))
    assert [(i.reference, i.id) for i in found] == expected
    assert {i.id for i in versions} == {OLD, NEW}


def test_a_worker_that_does_not_answer_is_left_out_but_not_forgotten(site: CoordinatorSite) -> None:
    site.one.images = [image(f"{ALPINE}:latest", NEW)]
    site.two.refuse("ListImages", errors.TimedOutError("late"))
    images = site.core.images
    assert [i.workers for i in asyncio.run(images.all())] == [(site.one.id,)]
    asyncio.run(images.find("alpine"))
    with pytest.raises(errors.UpstreamUnavailableError, match="two did not"):
        asyncio.run(images.find("nosuch"))


def test_an_image_that_any_box_was_made_of_stays(site: CoordinatorSite) -> None:
    site.one.images = [image(f"{ALPINE}:latest", NEW), image(f"{ALPINE}:3", OLD)]
    box_with(site, "v", site.two)
    images = site.core.images
    for name in ("alpine", "alpine:latest", NEW):
        with pytest.raises(errors.InvalidStateError, match="alpine is in use"):
            asyncio.run(images.remove(name))
    assert "RemoveImage" not in site.one.calls + site.two.calls
    asyncio.run(images.remove("alpine:3"))
    assert site.one.calls[-1] == "RemoveImage"
    assert [each.image_id for each in site.one.images] == [NEW]
    assert "RemoveImage" not in site.two.calls
