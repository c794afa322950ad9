"""What only disks on Docker Engine can show: nothing of them is left, and nothing of others is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docker
import pytest
from support.holdings import image_ids
from support.sites import Site

from boxlite_server import ids
from boxlite_server.errors import EngineError, ImageError, InvalidStateError, NotFoundError
from boxlite_server.worker.docker.containers import Containers
from boxlite_server.worker.docker.labels import helpers_of
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage import disks as docker_disks
from boxlite_server.worker.runtime import BoxRef, Owner


@pytest.fixture(autouse=True)
def nothing_is_left(site: Site, api: docker.APIClient) -> Iterator[None]:
    """Each test removes its boxes; with them goes all that was made of them."""
    before = image_ids(api, site.owner)
    yield
    assert site.runtime.list_boxes() == []
    assert image_ids(api, site.owner) == before
    assert api.containers(all=True, filters={"label": helpers_of(site.owner)}) == []


def tagged(api: docker.APIClient, name: str) -> list[str]:
    return [image["Id"] for image in api.images(name)]


def test_a_removed_snapshot_that_the_box_stands_on_goes_with_the_next_restore(
    site: Site, api: docker.APIClient
) -> None:
    disks, box = site.runtime.disks, site.new_box()
    first, second = ids.new_id(), ids.new_id()
    disks.snapshot(box, first)
    disks.snapshot(box, second)
    box = disks.restore(box, first, 2, site.spec()).box
    disks.remove_snapshot(box, first)
    assert tagged(api, f"boxlite/snapshot:{first}") == []
    assert len(tagged(api, f"boxlite/garbage:{first}")) == 1
    box = disks.restore(box, second, 3, site.spec()).box
    assert tagged(api, "boxlite/garbage") == []
    site.runtime.remove(box, force=True)


def test_images_of_others_stay(site: Site, api: docker.APIClient, docker_host: str) -> None:
    """Another worker on the same engine, and somebody's image without a tag."""
    box, kept = site.new_box(), ids.new_id()
    size = site.runtime.disks.snapshot(box, kept)
    owner = Owner(ids.new_id(), ids.new_id())
    stranger = DockerRuntime(lambda: owner, docker_host)
    foreign = api.commit(f"boxlite-{box.box_id}-1", conf={"Labels": {"boxlite.worker": "somebody"}})["Id"]
    stranger.disks.remove_snapshot(box, kept)
    stranger.remove(box, force=True)
    stranger.disks.tidy()
    with pytest.raises(NotFoundError):
        stranger.disks.restore(box, kept, 2, site.spec())
    with pytest.raises(NotFoundError):
        stranger.disks.clone(box, BoxRef(ids.new_id(), 1), site.spec())
    stranger.close()
    assert site.runtime.disks.snapshot(box, kept) == size
    site.runtime.remove(box, force=True)
    api.remove_image(foreign)  # still there


def test_a_disk_is_no_image_for_another_box(site: Site, api: docker.APIClient) -> None:
    box, kept = site.new_box(), ids.new_id()
    site.runtime.disks.snapshot(box, kept)
    image = f"boxlite/snapshot:{kept}"
    for reference in (image, api.inspect_image(image)["Id"]):
        with pytest.raises(ImageError, match=r"disk of a box|is not for boxes"):
            site.new_box(image=reference)
    site.runtime.images.remove(image)
    assert len(tagged(api, image)) == 1
    site.runtime.remove(box, force=True)


def test_the_helpers_of_an_export_are_nobodys_boxes(site: Site) -> None:
    box = site.new_box()
    with site.runtime.disks.export(box) as export:
        next(export.tar)
        assert [state.box for state in site.runtime.list_boxes()] == [box]
        assert list(export.tar)
    site.runtime.remove(box, force=True)


def test_the_settings_of_the_image_survive(site: Site, api: docker.APIClient) -> None:
    settings = {"Env": ["A=b"], "WorkingDir": "/made", "User": "box", "Cmd": ["sh", "-c", "sleep 9"]}
    settings |= {"StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}}
    api.create_container(site.image, name="rootfs")
    api.commit("rootfs", "rich", "1", conf=settings)
    box, kept, copy = site.new_box(image="rich:1"), ids.new_id(), BoxRef(ids.new_id(), 1)
    site.runtime.disks.snapshot(box, kept)
    site.runtime.disks.clone(box, copy, site.spec(image="rich:1"))
    restored = site.runtime.disks.restore(box, kept, 2, site.spec(image="rich:1")).box
    for ref in (copy, restored):
        config = api.inspect_container(f"boxlite-{ref.box_id}-{ref.generation}")["Config"]
        assert {"A=b"} <= set(config["Env"])
        assert (config["WorkingDir"], config["User"], config["Cmd"]) == ("/made", "box", ["sh", "-c", "sleep 9"])
        assert list(config["ExposedPorts"]) == ["80/tcp"]
        assert api.inspect_image(config["Image"])["Config"]["StopSignal"] == "SIGINT"
        site.runtime.remove(ref, force=True)
    api.remove_container("rootfs")
    api.remove_image("rich:1")


def test_what_a_killed_worker_left_is_tidied(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import between image and container, and an export under way; a snapshot without container stays."""
    box, kept, half = site.new_box(), ids.new_id(), BoxRef(ids.new_id(), 1)
    disks = site.runtime.disks
    assert isinstance(disks, docker_disks.DockerDisks)
    disks.snapshot(box, kept)
    with monkeypatch.context() as patch:
        # As after a kill, no container is made and nothing is cleaned up.
        patch.setattr(disks, "forget", lambda box_id: None)
        patch.setattr(Containers, "create", _killed)
        with pytest.raises(EngineError), disks.export(box) as export:
            disks.load(half, site.spec(), export.tar)
        patch.setattr(disks, "_untag", lambda tag: True)
        patch.setattr(disks, "_sweep", lambda: None)
        patch.setattr(api.__class__, "remove_container", lambda *args, **kwargs: None)
        with disks.export(box):
            pass
    assert len(tagged(api, f"boxlite/box:{half.box_id}")) == 1
    assert len(api.containers(all=True, filters={"label": helpers_of(site.owner)})) == 1
    disks.tidy()
    assert tagged(api, f"boxlite/box:{half.box_id}") == []
    assert api.containers(all=True, filters={"label": helpers_of(site.owner)}) == []
    assert len(tagged(api, f"boxlite/snapshot:{kept}")) == 1
    disks.restore(box, kept, 2, site.spec())
    site.runtime.remove(BoxRef(box.box_id, 2), force=True)


def _killed(*args: Any, **fields: Any) -> None:
    raise EngineError("killed")


def test_a_restore_that_a_kill_interrupted_is_finished(
    site: Site, api: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new container is there and the old one still is."""
    disks, box, kept = site.runtime.disks, site.new_box(), ids.new_id()
    disks.snapshot(box, kept)
    with monkeypatch.context() as patch:
        patch.setattr(Containers, "delete", _killed)
        with pytest.raises(EngineError):
            disks.restore(box, kept, 2, site.spec())
    new = BoxRef(box.box_id, 2)
    assert {state.box for state in site.runtime.list_boxes()} <= {box, new}
    assert disks.restore(box, kept, 2, site.spec()).box == new
    assert [state.box for state in site.runtime.list_boxes()] == [new]
    with pytest.raises(InvalidStateError):
        disks.restore(box, kept, 1, site.spec())
    site.runtime.remove(new, force=True)
