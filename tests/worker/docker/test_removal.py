"""Removals of several things, of which one fails, is in use, or goes under another hand: the others go all the same,
and nothing is left in the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import docker
import docker.errors
import pytest
from support.holdings import image_ids, tags
from support.sites import Site

from boxlite_server import ids
from boxlite_server.errors import EngineError
from boxlite_server.worker.docker.engine import Engine
from boxlite_server.worker.docker.storage.disks import DockerDisks
from boxlite_server.worker.runtime import BoxRef


@pytest.fixture(autouse=True)
def nothing_is_left(site: Site, api: docker.APIClient) -> Iterator[None]:
    before = image_ids(api, site.owner)
    yield
    assert site.runtime.list_boxes() == []
    assert image_ids(api, site.owner) == before


def box_with_snapshots(site: Site, count: int) -> tuple[BoxRef, list[str]]:
    """A box that was restored from each of its snapshots, so that each but the first is the child of another one."""
    box, kept = site.new_box(), [ids.new_id() for _ in range(count)]
    for snapshot_id in kept:
        site.runtime.disks.snapshot(box, snapshot_id)
        box = site.runtime.disks.restore(box, snapshot_id, box.generation + 1, site.spec()).box
    return box, kept


def meddle(patch: pytest.MonkeyPatch, site: Site, meanwhile: Callable[[str], None]) -> None:
    """Run `meanwhile` with each tag or image id that the worker is about to have removed."""
    client: Any = site.runtime.disks._engine.api  # type: ignore[attr-defined]
    remove = client.remove_image

    def meddled(image: str, **options: Any) -> Any:
        meanwhile(image)
        return remove(image, **options)

    patch.setattr(client, "remove_image", meddled)


def engine_fault(text: str) -> docker.errors.APIError:
    response: Any = SimpleNamespace(status_code=500, reason="Internal Server Error", url="")
    return docker.errors.APIError(text, response, text)


def test_a_box_goes_whole_while_somebody_else_removes_its_images(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, kept = box_with_snapshots(site, 4)
    taken = iter([f"boxlite/snapshot:{kept[2]}", f"boxlite/snapshot:{kept[1]}"])

    def another_hand(image: str) -> None:
        if (victim := next(taken, None)) is not None:
            api.remove_image(victim)

    with monkeypatch.context() as patch:
        meddle(patch, site, another_hand)
        site.runtime.remove(box, force=True)
    assert next(taken, None) is None
    assert tags(api, site.owner, "boxlite/snapshot") == set()


def test_an_image_that_vanishes_under_the_engines_own_hand_is_removed(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker Engine answers with an internal error when two removals meet, though the image is gone then."""
    box, kept = box_with_snapshots(site, 3)

    def collide(image: str) -> None:
        if image == f"boxlite/snapshot:{kept[1]}":
            api.remove_image(image)
            raise engine_fault("unrecognized image ID sha256:0123")

    with monkeypatch.context() as patch:
        meddle(patch, site, collide)
        site.runtime.remove(box, force=True)
    assert tags(api, site.owner, "boxlite/snapshot") == set()


def test_one_image_that_cannot_be_removed_keeps_none_of_the_others(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, kept = box_with_snapshots(site, 4)

    def fail(image: str) -> None:
        if image == f"boxlite/snapshot:{kept[0]}":
            raise engine_fault("device or resource busy")

    with monkeypatch.context() as patch:
        meddle(patch, site, fail)
        with pytest.raises(EngineError, match="device or resource busy"):
            site.runtime.remove(box, force=True)
    assert site.runtime.list_boxes() == []
    assert tags(api, site.owner, "boxlite/snapshot") == {kept[0]}
    site.runtime.remove(box, force=True)  # the next try


def test_one_container_that_cannot_be_removed_keeps_none_of_the_others(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restoration that was broken off left two containers."""
    box, kept = site.new_box(), ids.new_id()
    site.runtime.disks.snapshot(box, kept)
    client: Any = site.runtime.disks._engine.api  # type: ignore[attr-defined]
    remove, stuck = client.remove_container, {f"boxlite-{box.box_id}-1"}

    def sticky(container: str, **options: Any) -> Any:
        if container in stuck:
            raise engine_fault("driver failed to remove root filesystem")
        return remove(container, **options)

    new = BoxRef(box.box_id, 2)
    with monkeypatch.context() as patch:
        patch.setattr(client, "remove_container", sticky)
        with pytest.raises(EngineError):
            site.runtime.disks.restore(box, kept, 2, site.spec())
        with pytest.raises(EngineError, match="root filesystem"):
            site.runtime.remove(new, force=True)
        assert [state.box for state in site.runtime.list_boxes()] == [box]
    assert tags(api, site.owner, "boxlite/snapshot") == {kept}  # as long as there is a container, there may be a box
    site.runtime.remove(new, force=True)


def test_an_image_that_somebody_uses_goes_when_its_user_goes(site: Site, api: docker.APIClient) -> None:
    box, kept = box_with_snapshots(site, 2)
    api.create_container(f"boxlite/snapshot:{kept[0]}", ["sh"], name="foreign")
    api.create_container(f"boxlite/snapshot:{kept[1]}", ["sh"], name="alien")
    site.runtime.disks.remove_snapshot(box, kept[0])
    site.runtime.remove(box, force=True)
    assert tags(api, site.owner, "boxlite/snapshot") == set()
    assert site.runtime.disks.list_snapshots() == []
    api.start("foreign")  # it is as good as ever
    api.remove_container("foreign", force=True)
    api.remove_container("alien", force=True)
    site.runtime.disks.list_snapshots()
    assert tags(api, site.owner, "boxlite/garbage") == set()


def test_a_snapshot_is_safe_from_a_removal_at_the_same_time(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine makes an image first and tags it then."""
    box, other, kept, dropped = site.new_box(), site.new_box(), ids.new_id(), ids.new_id()
    disks = site.runtime.disks
    assert isinstance(disks, DockerDisks)
    disks.snapshot(other, dropped)
    call = Engine.call

    def slowly(self: Engine, method: str, path: str, params: Any = None, **options: Any) -> Any:
        if path != "/commit":
            return call(self, method, path, params, **options)
        untagged = {key: value for key, value in params.items() if key not in ("repo", "tag")}
        answer = call(self, method, path, untagged, **options)
        removal = threading.Thread(target=disks.remove_snapshot, args=(other, dropped))
        removal.start()
        removal.join()
        self.api.tag(json.loads(answer.text)["Id"], params["repo"], params["tag"])
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "call", slowly)
        disks.snapshot(box, kept)
    assert tags(api, site.owner, "boxlite/snapshot") == {kept}
    disks.restore(box, kept, 2, site.spec())
    site.runtime.remove(other, force=True)
    site.runtime.remove(BoxRef(box.box_id, 2), force=True)


def test_a_box_whose_start_was_cut_off_says_what_to_do(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, client = site.new_box(), site.runtime.disks._engine.api  # type: ignore[attr-defined]

    def never(*_: Any, **__: Any) -> None:
        raise engine_fault("failed to create shim: task 0123abcd: already exists: unknown")

    with monkeypatch.context() as patch:
        patch.setattr(client, "start", never)
        with pytest.raises(EngineError, match="restart the engine, then start the box"):
            site.runtime.start(box)
    site.runtime.remove(box, force=True)
