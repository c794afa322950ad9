"""An image is asked for by its tag once, and whatever becomes of the tag is seen by the next box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docker
import pytest
from support.sites import hearing

from boxlite_server import ids
from boxlite_server.errors import EngineError, ImageError
from boxlite_server.local import busybox
from boxlite_server.worker.docker.engine import Engine
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.runtime import BoxRef, BoxSpec, Owner

OWNER = Owner(ids.new_id(), ids.new_id())


@pytest.fixture
def tag(docker_host: str, api: docker.APIClient) -> Iterator[str]:
    name = f"boxlite-tags-{ids.new_id().lower()}:1"
    busybox.import_image(docker_host, name)
    yield name
    for left in api.images(name.partition(":")[0]):
        api.remove_image(left["Id"], force=True)


@pytest.fixture
def runtime(docker_host: str, tag: str) -> Iterator[DockerRuntime]:
    """A runtime that hears the engine's events, and knows the life of its engine."""
    with hearing(DockerRuntime(lambda: OWNER, docker_host)) as runtime:
        yield runtime


@pytest.fixture
def asked(runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that the engine was asked for."""
    names: list[str] = []
    inspect = runtime._engine.api.inspect_image

    def noted(name: str) -> Any:
        names.append(name)
        return inspect(name)

    monkeypatch.setattr(runtime._engine.api, "inspect_image", noted)
    return names


def image_of(runtime: DockerRuntime, image: str) -> str:
    """The id of the image that a new box is made of."""
    return runtime.create(BoxRef(ids.new_id(), 1), BoxSpec(image, memory_mib=64, network_enabled=False)).image_id


def know(runtime: DockerRuntime, image: str) -> str:
    """Have the runtime know an image by its tag; its id."""
    box = BoxRef(ids.new_id(), 1)
    runtime.create(box, BoxSpec(image, memory_mib=64, network_enabled=False))
    runtime.start(box)  # it asks for the life of the engine
    return image_of(runtime, image)


def test_a_known_tag_costs_no_call(runtime: DockerRuntime, tag: str, asked: list[str]) -> None:
    image = know(runtime, tag)
    asked.clear()
    assert [image_of(runtime, tag) for _ in range(3)] == [image] * 3
    assert asked == []


def test_a_tag_that_was_moved_names_its_new_image_at_once(
    runtime: DockerRuntime, docker_host: str, tag: str, asked: list[str]
) -> None:
    former = know(runtime, tag)
    for number in range(5):
        busybox.import_image(docker_host, tag, cmd=("sleep", str(number)))
        made = image_of(runtime, tag)
        assert made != former, "the tag names another image since"
        former = made


def test_a_tag_that_was_removed_names_nothing(runtime: DockerRuntime, tag: str, api: docker.APIClient) -> None:
    know(runtime, tag)
    api.remove_image(tag, force=True)
    with pytest.raises(ImageError):
        image_of(runtime, tag)


def test_each_box_asks_where_the_engines_process_cannot_be_seen(
    runtime: DockerRuntime, tag: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(engine: Engine) -> int:
        raise EngineError("the worker cannot see the engine's process")

    monkeypatch.setattr(Engine, "pid", property(hidden))
    image = know(runtime, tag)
    asked.clear()
    assert [image_of(runtime, tag) for _ in range(2)] == [image] * 2
    assert len(asked) == 2
