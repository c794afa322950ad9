"""Volumes by the coordinator's own book-keeping, with workers that answer as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.blocking import Blocking

from boxlite_server import errors
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server.coordinator.domain.images import Images
from boxlite_server.coordinator.domain.volumes import Volumes
from boxlite_server.coordinator.fleet.calls import Calls
from boxlite_server.coordinator.fleet.registry import Fleet
from boxlite_server.coordinator.host_access import Mount
from boxlite_server.coordinator.leases import Leases
from boxlite_server.coordinator.spec import Spec
from boxlite_server.coordinator.store import Box, Store, Worker

NOW = 1000.0
Answer = Callable[[str, str], Any]


class Workers:
    """Two workers, one and two; `answer` gets worker and method, and may raise."""

    def __init__(self, store: Store) -> None:
        self.fleet = Fleet(store, lambda: NOW)
        self.rpcs = Calls(self.fleet, connect=lambda row: WorkerLink(self, row))
        self.calls: list[tuple[str, str]] = []
        self.answer: Answer = lambda worker_id, method: pb.Empty()


class WorkerLink:
    def __init__(self, workers: Workers, row: Worker) -> None:
        self._workers = workers
        self._id = row.id

    async def unary(self, method: str, request: Any, *, timeout: float) -> Any:
        self._workers.calls.append((self._id, method))
        return self._workers.answer(self._id, method)

    async def close(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = asyncio.run(Store.open(tmp_path / "coordinator.db"))
    for name in ("one", "two"):
        Blocking(store).put_worker(
            Worker(name, name, "http://h:1", "s", "active", "e", {}, 2, 4096, None, "", "", NOW, NOW)
        )
    return store


@pytest.fixture
def workers(store: Store) -> Workers:
    return Workers(store)


@pytest.fixture
def volumes(store: Store, workers: Workers) -> Volumes:
    return Volumes(store, workers.fleet, workers.rpcs, Leases(store, lambda: NOW, "here"), lambda: NOW)


def failing(worker: str, error: errors.BoxliteError) -> Answer:
    def answer(worker_id: str, method: str) -> Any:
        if worker_id == worker:
            raise error
        return pb.Empty()

    return answer


def box_with(store: Store, volume_id: str, worker_id: str) -> None:
    spec = Spec(image="alpine", mounts=(Mount("x", None, "/d", False, volume_id),))
    Blocking(store).insert_box(
        Box("box1", "p", None, worker_id, 1, "stopped", spec, 1, 1, {}, None, None, None, NOW, NOW, None, None)
    )


def test_the_next_worker_is_tried(store: Store, volumes: Volumes, workers: Workers) -> None:
    workers.answer = failing("one", errors.UpstreamUnavailableError("gone"))
    made = asyncio.run(volumes.create("p", "data"))
    assert (made.worker_id, made.state) == ("two", "ready")
    assert Blocking(store).list_volumes("p") == [made]
    workers.answer = lambda worker_id, method: (_ for _ in ()).throw(errors.EngineError("no engine"))
    with pytest.raises(errors.UpstreamUnavailableError, match=r"2 failed \(one: no engine; two: no engine\)"):
        asyncio.run(volumes.create("p", "more"))
    assert Blocking(store).list_volumes("p") == [made]


def test_what_was_left_half_made_is_finished_by_asking_again(store: Store, volumes: Volumes, workers: Workers) -> None:
    workers.answer = failing("one", errors.TimedOutError("late"))
    with pytest.raises(errors.TimedOutError):
        asyncio.run(volumes.create("p", "data"))
    (left,) = Blocking(store).list_volumes("p")
    assert left.state == "creating"
    with pytest.raises(errors.InvalidStateError, match="creating"):
        mounts, _ = Blocking(volumes).resolve("p", [Mount("data", None, "/d", False)])
        asyncio.run(volumes.check_ready(store, mounts))
    workers.answer = lambda worker_id, method: pb.Empty()
    made = asyncio.run(volumes.create("p", "data"))
    assert (made.id, made.worker_id, made.state) == (left.id, left.worker_id, "ready")
    with pytest.raises(errors.AlreadyExistsError):
        asyncio.run(volumes.create("p", "data"))


def test_a_volume_in_use_is_kept_and_its_worker_not_asked(store: Store, volumes: Volumes, workers: Workers) -> None:
    made = asyncio.run(volumes.create("p", None))
    box_with(store, made.id, made.worker_id)
    workers.calls.clear()
    with pytest.raises(errors.InvalidStateError, match="box1"):
        asyncio.run(volumes.remove("p", made.id, force=True))
    assert workers.calls == []
    Blocking(store).delete_box("box1")
    asyncio.run(volumes.remove("p", made.id, force=False))
    assert Blocking(store).list_volumes("p") == []


def test_a_removal_that_did_not_end_can_be_repeated(store: Store, volumes: Volumes, workers: Workers) -> None:
    made = asyncio.run(volumes.create("p", "data"))
    workers.answer = failing(made.worker_id, errors.UpstreamUnavailableError("gone"))
    with pytest.raises(errors.UpstreamUnavailableError):
        asyncio.run(volumes.remove("p", "data", force=True))
    with pytest.raises(errors.InvalidStateError, match="deleting"):
        mounts, _ = Blocking(volumes).resolve("p", [Mount("data", None, "/d", False)])
        asyncio.run(volumes.check_ready(store, mounts))
    workers.answer = lambda worker_id, method: pb.Empty()
    asyncio.run(volumes.remove("p", "data", force=False))
    assert Blocking(store).list_volumes("p") == []


def test_what_the_engine_refuses_to_remove_is_as_before(store: Store, volumes: Volumes, workers: Workers) -> None:
    made = asyncio.run(volumes.create("p", "data"))
    workers.answer = failing(made.worker_id, errors.InvalidStateError("a container has it"))
    with pytest.raises(errors.InvalidStateError, match="a container"):
        asyncio.run(volumes.remove("p", "data", force=False))
    assert Blocking(volumes).get("p", "data").state == "ready"


def test_an_id_comes_before_a_name(volumes: Volumes) -> None:
    first = asyncio.run(volumes.create("p", None))
    second = asyncio.run(volumes.create("q", first.id))
    assert Blocking(volumes).get("p", first.id) == first
    assert Blocking(volumes).get("q", first.id) == second


def test_a_removed_worker_takes_its_volumes_rows_along(store: Store, volumes: Volumes, workers: Workers) -> None:
    made = asyncio.run(volumes.create("p", "data"))
    with pytest.raises(errors.InvalidStateError, match=r"0 boxes and 1 volume;.*1 volume is forgotten"):
        asyncio.run(workers.fleet.remove(made.worker_id, force=False))
    asyncio.run(workers.fleet.remove(made.worker_id, force=True))
    assert Blocking(store).list_volumes("p") == []


# ---- images, over the same workers ----


def image(reference: str, image_id: str, at: int = 0, digests: tuple[str, ...] = ()) -> pb.Image:
    return pb.Image(reference=reference, image_id=image_id, cached_at_ms=at, size_bytes=5, digests=digests)


ALPINE = "docker.io/library/alpine"
OLD, NEW, MANIFEST = ("sha256:" + digit * 64 for digit in "123")


def listing(**images: list[pb.Image]) -> Answer:
    return lambda worker_id, method: (
        pb.ListImagesResponse(images=images[worker_id]) if method == "ListImages" else pb.Empty()
    )


def test_the_same_version_on_two_workers_is_one_image(store: Store, workers: Workers) -> None:
    one = [image(f"{ALPINE}:latest", NEW, 2000), image(f"{ALPINE}:3", NEW, 2000)]
    workers.answer = listing(one=one, two=[image(f"{ALPINE}:latest", NEW, 1000), image(f"{ALPINE}:latest", OLD, 1)])
    found = asyncio.run(Images(store, workers.fleet, workers.rpcs).all())
    assert [(i.reference, i.id, i.cached_at, i.workers) for i in found] == [
        (f"{ALPINE}:3", NEW, 2.0, ("one",)),
        (f"{ALPINE}:latest", OLD, 0.001, ("two",)),
        (f"{ALPINE}:latest", NEW, 1.0, ("one", "two")),
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
def test_what_a_name_finds(store: Store, workers: Workers, name: str, expected: list[tuple[str, str]]) -> None:
    latest = image(f"{ALPINE}:latest", NEW, 1, digests=(MANIFEST,))
    workers.answer = listing(one=[latest], two=[image(f"{ALPINE}:3", OLD, 2), image("ghcr.io/a/alpine:3", "sha256:9")])
    found, versions = asyncio.run(Images(store, workers.fleet, workers.rpcs).find(name))
    assert [(i.reference, i.id) for i in found] == expected
    assert {i.id for i in versions} == {OLD, NEW}


def test_a_worker_that_does_not_answer_is_left_out_but_not_forgotten(store: Store, workers: Workers) -> None:
    def answer(worker_id: str, method: str) -> Any:
        if worker_id == "two":
            raise errors.TimedOutError("late")
        return pb.ListImagesResponse(images=[image(f"{ALPINE}:latest", NEW)])

    workers.answer = answer
    images = Images(store, workers.fleet, workers.rpcs)
    assert [i.workers for i in asyncio.run(images.all())] == [("one",)]
    asyncio.run(images.find("alpine"))
    with pytest.raises(errors.UpstreamUnavailableError, match="two did not"):
        asyncio.run(images.find("nosuch"))


def test_an_image_that_any_box_was_made_of_stays(store: Store, workers: Workers) -> None:
    workers.answer = listing(one=[image(f"{ALPINE}:latest", NEW), image(f"{ALPINE}:3", OLD)], two=[])
    box_with(store, "v", "two")
    images = Images(store, workers.fleet, workers.rpcs)
    for name in ("alpine", "alpine:latest", NEW):
        with pytest.raises(errors.InvalidStateError, match="alpine is in use"):
            asyncio.run(images.remove(name))
    assert "RemoveImage" not in [method for _, method in workers.calls]
    asyncio.run(images.remove("alpine:3"))
    assert workers.calls[-1] == ("one", "RemoveImage")
